//! The OpenAPI document: kept by hand in `openapi.json`, completed with the limits of this server.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::App;
use outrank_http::{ApiError, json_response};

const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub(crate) async fn document(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut document: Value =
        serde_json::from_str(DOCUMENT).map_err(|error| ApiError::internal(&error.to_string()))?;
    complete(&mut document, &app);
    Ok(json_response(StatusCode::OK, &document))
}

/// Writes the limits of this server into the schemas.
fn complete(document: &mut Value, app: &App) {
    let limits = app.limits();
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    let schemas = &mut document["components"]["schemas"];
    schemas["Model"]["properties"]["id"]["const"] = json!(app.config.model_name);
    schemas["ModelName"]["const"] = json!(app.config.model_name);
    schemas["OutputLimit"]["maximum"] = json!(limits.context_tokens);
    schemas["OutputCount"]["maximum"] = json!(limits.max_n);
    schemas["Prompts"]["maxItems"] = json!(limits.max_prompts);
    if app.config.api_keys.is_empty()
        && let Some(paths) = document["paths"].as_object_mut()
    {
        for operation in
            paths.values_mut().filter_map(Value::as_object_mut).flat_map(|path| path.values_mut())
        {
            if let Some(operation) = operation.as_object_mut() {
                operation.remove("security");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{CHAT_INERT, COMMON_INERT, COMPLETIONS_INERT, Inert, MESSAGE_INERT};

    #[test]
    fn fields_that_must_ask_for_nothing_are_documented_with_exactly_those_values() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let tables: [(&str, &[Inert]); 5] = [
            ("ChatRequest", &COMMON_INERT),
            ("ChatRequest", &CHAT_INERT),
            ("CompletionRequest", &COMMON_INERT),
            ("CompletionRequest", &COMPLETIONS_INERT),
            ("Message", &MESSAGE_INERT),
        ];
        for (schema, (name, harmless)) in
            tables.iter().flat_map(|(schema, table)| table.iter().map(move |row| (schema, row)))
        {
            let documented = &document["components"]["schemas"][schema]["properties"][name]["enum"];
            let listed: Vec<String> = documented.as_array().unwrap().iter().map(Value::to_string).collect();
            // JSON Schema takes 1 and 1.0 for the same number.
            let accepted =
                std::iter::once("null").chain(harmless.iter().copied()).filter(|value| *value != "1.0");
            assert!(listed.iter().map(String::as_str).eq(accepted), "{schema}.{name}: {listed:?}");
        }
    }
}
