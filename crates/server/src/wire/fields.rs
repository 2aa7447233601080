//! A JSON object that is read field by field until nothing is left, so that nothing can be ignored.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use outrank_http::ApiError;

/// The fields of a JSON object that have not been read yet. `null` is the same as absent, as in the OpenAI API.
#[derive(Debug)]
pub(crate) struct Fields {
    unread: Map<String, Value>,
    /// Where the object stands in the body, as a prefix of the `param` of errors: `""` or `"messages[0]."`.
    prefix: String,
}

impl Fields {
    /// The fields of a request body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body).map_err(ApiError::broken_json)? {
            Value::Object(unread) => Ok(Self { unread, prefix: String::new() }),
            other => Err(ApiError::broken_json(format!("it is {}", describe(&other)))),
        }
    }

    /// The fields of an object within the body.
    pub(crate) fn within(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(unread) => Ok(Self { unread, prefix: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// The name of a field as `param` of an error.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Reads a field of any type.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.unread.remove(name).filter(|value| !value.is_null())
    }

    /// Reads an object, or nothing.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = self.path(name);
        self.value(name).map(|value| Self::within(value, &path)).transpose()
    }

    /// Reads an array, or nothing.
    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(&self.path(name), "an array", &other)),
        }
    }

    /// Reads a string, or nothing.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    /// Reads a truth value; absent is false.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.value(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong_type(&self.path(name), "true or false", &other)),
        }
    }

    /// Reads a number within a range, or nothing.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(wrong_type(&self.path(name), &wanted, &value)),
        }
    }

    /// Reads a whole number within a range, or nothing. `5.0` is a whole number, as in JSON Schema.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        match whole(&value) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(wrong_type(&self.path(name), &wanted, &value)),
        }
    }

    /// Like [`Self::integer`], for ranges of `u32`.
    pub(crate) fn count(&mut self, name: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        let number = self.integer(name, range)?;
        Ok(number.and_then(|number| u32::try_from(number).ok()))
    }

    /// Refuses what has not been read.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        if self.unread.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = self.unread.keys().map(|name| self.path(name)).collect();
        Err(ApiError::unknown_fields(&names))
    }
}

/// A JSON number without fraction, if it is one.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    /// From here on an `f64` no longer tells whole numbers apart.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
    })
}

/// The error for a value of a wrong type or out of its range.
pub(crate) fn wrong_type(path: &str, wanted: &str, found: &Value) -> ApiError {
    ApiError::invalid(path, format!("`{path}` must be {wanted}, not {}", describe(found)))
}

/// A value in words short enough for an error message.
fn describe(value: &Value) -> String {
    const MAX_SHOWN_CHARS: usize = 40;
    match value {
        Value::Null => "null".into(),
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.chars().count() > MAX_SHOWN_CHARS => "a long string".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    fn message(error: &ApiError) -> String {
        error.body()["error"]["message"].as_str().unwrap().to_owned()
    }

    #[test]
    fn null_is_the_same_as_absent() {
        let mut fields = fields(r#"{"temperature": null}"#);
        assert_eq!(fields.number("temperature", 0.0..=2.0).unwrap(), None);
        fields.finish().unwrap();
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place_and_what_to_send() {
        let inner = Value::from_iter([("role", 7)]);
        let error = Fields::within(inner, "messages[0]").unwrap().string("role").unwrap_err();
        assert_eq!(message(&error), "`messages[0].role` must be a string, not 7");
        assert_eq!(error.body()["error"]["param"], "messages[0].role");
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_point_and_fractions_are_refused() {
        let mut fields = fields(r#"{"a": 5.0, "b": 5.5, "c": 1e300, "d": 0}"#);
        assert_eq!(fields.count("a", 1..=9).unwrap(), Some(5));
        for name in ["b", "c", "d"] {
            assert!(fields.count(name, 1..=9).is_err(), "{name}");
        }
    }

    #[test]
    fn what_nobody_read_is_refused_by_name() {
        let error = fields(r#"{"temprature": 1, "x": 2}"#).finish().unwrap_err();
        assert!(message(&error).contains("`temprature`, `x`"), "{error:?}");
    }

    #[test]
    fn numbers_that_are_no_numbers_are_broken_json() {
        for body in [r#"{"temperature": NaN}"#, r#"{"temperature": 1e999}"#, "[1]", "", "{"] {
            let error = Fields::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.body()["error"]["code"], "invalid_json", "{body}");
        }
    }
}
