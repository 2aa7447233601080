//! Chat templates: the Jinja that a model carries, rendered as Hugging Face's `apply_chat_template` does.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};

use crate::TemplateError;

const NAME: &str = "chat";
/// Roles that chat templates know.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];
/// Marks an error that the template raised itself.
const RAISED: &str = "raise_exception: ";
/// Work limit of one rendering, in minijinja instructions; a template that needs more loops.
const MAX_RENDER_FUEL: u64 = 50_000_000;

/// One message of a chat.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A message of `role` with `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A parsed chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    system_prompt: Option<ChatMessage>,
}

impl ChatTemplate {
    /// Parses the Jinja `source`; `bos` and `eos` are the spellings of the model's special tokens.
    ///
    /// # Errors
    /// [`TemplateError::Render`] with the line at fault.
    pub fn parse(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(MAX_RENDER_FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Render(describe(&error)))?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into(), system_prompt: None })
    }

    /// The same template, with this system message before chats that do not begin with one of their own, in place of
    /// what the template itself puts there.
    ///
    /// # Errors
    /// [`TemplateError`] if the template takes no system message.
    pub fn with_system_prompt(mut self, text: &str) -> Result<Self, TemplateError> {
        self.system_prompt = Some(ChatMessage::new("system", text));
        self.render(&[ChatMessage::new("user", "Hi")], true)?;
        Ok(self)
    }

    /// Spelling of the beginning-of-text token; empty if the model has none.
    pub fn bos(&self) -> &str {
        &self.bos
    }

    /// The text of a chat. `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// [`TemplateError`] if there is no message, a role is unknown, or the template refuses or fails.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        if messages.is_empty() {
            return Err(TemplateError::NoMessages);
        }
        if let Some(index) = messages.iter().position(|message| !ROLES.contains(&message.role.as_str())) {
            return Err(TemplateError::UnknownRole { index, role: messages[index].role.clone() });
        }
        let failed = |error: Error| {
            let message = describe(&error);
            match message.split_once(RAISED) {
                Some((_, reason)) => TemplateError::Refused(reason.to_owned()),
                None => TemplateError::Render(message),
            }
        };
        let system_prompt = self.system_prompt.iter().filter(|_| messages[0].role != "system");
        let messages: Vec<&ChatMessage> = system_prompt.chain(messages).collect();
        let values = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
        };
        self.environment.get_template(NAME).and_then(|template| template.render(values)).map_err(failed)
    }
}

fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) if !detail.starts_with(RAISED) => format!("{detail} (line {line})"),
        _ => detail,
    }
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// The date in UTC, as templates that tell the model today's date ask for it.
fn strftime_now(format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", chrono::Utc::now().format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("bad date format {format:?}")))?;
    Ok(text)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`; the filter that comes with Jinja escapes for HTML.
#[expect(clippy::needless_pass_by_value, reason = "signature of a minijinja filter")]
fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        Some(spaces) => {
            let indent = " ".repeat(spaces);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, PythonFormatter)),
    };
    let bad = |reason: String| Error::new(ErrorKind::BadSerialization, reason);
    written.map_err(|error| bad(error.to_string()))?;
    String::from_utf8(json).map_err(|error| bad(error.to_string()))
}

/// JSON with `, ` and `: ` between items, as Python prints it.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[ChatMessage]) -> Result<String, TemplateError> {
        ChatTemplate::parse(source, "<s>", "</s>")?.render(messages, true)
    }

    fn user(content: &str) -> Vec<ChatMessage> {
        vec![ChatMessage::new("user", content)]
    }

    #[test]
    fn templates_use_what_hugging_face_offers() {
        let source = "{%- set ns = namespace(found=false) -%}\n\
            {%- for m in messages -%}\n\
            {%- if loop.index0 > 3 %}{% break %}{% endif -%}\n\
            {%- if m.role == 'user' and not ns.found %}{% set ns.found = true %}{{ bos_token + m['content'].strip() }}{% endif -%}\n\
            {%- endfor -%}\n\
            {{ ns.found }} {{ {'a': [1, '<é>']} | tojson }} {{ messages[0].content.split('l')[0] }}{{ messages[-1]['role'].startswith('u') }}";
        let text = render(source, &user(" hello ")).unwrap();
        assert_eq!(text, "<s>helloTrue {\"a\": [1, \"<é>\"]}  heTrue");
        assert_eq!(render("{{ strftime_now('%Y') | length }}", &user("x")).unwrap(), "4");
    }

    #[test]
    fn refusals_and_mistakes_are_told_apart() {
        let error = render("{{ raise_exception('roles must alternate') }}", &user("x")).unwrap_err();
        assert!(
            matches!(&error, TemplateError::Refused(reason) if reason == "roles must alternate"),
            "{error}"
        );
        assert!(matches!(render("{{ 1 / 'x' }}", &user("x")), Err(TemplateError::Render(_))));
        assert!(matches!(ChatTemplate::parse("{% for %}", "", ""), Err(TemplateError::Render(_))));
        assert!(matches!(render("", &[]), Err(TemplateError::NoMessages)));
        let error = render("", &[ChatMessage::new("wizard", "x")]).unwrap_err().to_string();
        assert_eq!(
            error,
            "messages[0].role: unknown role \"wizard\", expected one of system, user, assistant, tool"
        );
    }

    #[test]
    fn a_system_prompt_stands_before_chats_that_bring_none() {
        let source = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}";
        let template = ChatTemplate::parse(source, "", "").unwrap().with_system_prompt("").unwrap();
        assert_eq!(template.render(&user("x"), true).unwrap(), "system=;user=x;");
        let own = [ChatMessage::new("system", "s"), ChatMessage::new("user", "x")];
        assert_eq!(template.render(&own, true).unwrap(), "system=s;user=x;");
        let unknown = template.render(&[ChatMessage::new("wizard", "x")], true).unwrap_err();
        assert!(
            matches!(unknown, TemplateError::UnknownRole { index: 0, .. }),
            "counted as the client counts"
        );
        let strict =
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}";
        let refused = ChatTemplate::parse(strict, "", "").unwrap().with_system_prompt("s").unwrap_err();
        assert!(matches!(refused, TemplateError::Refused(_)), "{refused}");
    }

    #[test]
    fn an_endless_template_is_stopped() {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}";
        assert!(matches!(render(source, &user("x")), Err(TemplateError::Render(_))));
    }
}
