//! JSON Schema of the configuration file, from the types that read it. Editors complete and check a
//! file with it. Rules that relate several keys are left to `outpace check`.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::expression::ExpressionSetting;
use super::schema::{ConfigFile, OnErrorSetting};
use super::value::{DurationText, FromText, Listen, OneOrMany, Percent};
use crate::policy::{Allow, HostPattern};
use crate::units::{ByteSize, HostName, Rate};

/// Returns the JSON Schema (draft 2020-12) of the configuration file.
pub fn json_schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<ConfigFile>();
    schema.insert("title".to_owned(), "Configuration of outpace".into());
    schema.to_value()
}

/// Form of a value that is written as text, for its schema.
trait WrittenForm {
    /// Name of the definition in the schema.
    const NAME: &'static str;
    /// Explanation with an example.
    const FORM: &'static str;
    /// Regular expression for the whole text. A text with a variable always passes.
    const PATTERN: &'static str;
    /// Range of the numbers that may stand in place of the text, if there are any.
    const NUMBERS: Option<(f64, f64)> = None;
}

impl<T: WrittenForm> JsonSchema for FromText<T> {
    fn schema_name() -> Cow<'static, str> {
        T::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let pattern = format!("^(?:{})$|\\$", T::PATTERN);
        let mut schema =
            json_schema!({ "description": T::FORM, "type": "string", "pattern": pattern });
        if let Some((least, most)) = T::NUMBERS {
            schema.insert("type".to_owned(), serde_json::json!(["string", "number"]));
            schema.insert("minimum".to_owned(), least.into());
            schema.insert("maximum".to_owned(), most.into());
        }
        schema
    }
}

/// Implements [`WrittenForm`] for a type, with its name, explanation, pattern and numbers.
macro_rules! written_forms {
    ($($type:ty: $name:literal, $form:literal, $pattern:literal, $numbers:expr;)*) => {
        $(impl WrittenForm for $type {
            const NAME: &'static str = $name;
            const FORM: &'static str = $form;
            const PATTERN: &'static str = $pattern;
            const NUMBERS: Option<(f64, f64)> = $numbers;
        })*
    };
}

written_forms! {
    String: "Text", "Text, in which ${NAME} stands for an environment variable.", r"[\s\S]*", Some((f64::MIN, f64::MAX));
    DurationText: "Duration", "Duration with its unit, such as \"30s\", \"250ms\" or \"1m\".", r"\s*(?:0|(?:[0-9.]+\s*[A-Za-z\u00b5]+\s*)+)", Some((0.0, 0.0));
    Percent: "Percent", "Share from 0% to 100%, such as \"20%\".", r"[0-9.]+\s*%", None;
    Listen: "Listen", "Address and port, such as \"127.0.0.1:8080\" or \"[::]:8080\".", r"\S+:[0-9]{1,5}", None;
    ByteSize: "Bytes", "Size with its unit, such as \"64MiB\".", r"\s*[0-9]+\s*(?:GiB|MiB|KiB|B)\s*", None;
    Rate: "Rate", "Number of requests or units per period, such as \"500/1m\".", r"\s*[0-9]+\s*/\s*(?:[0-9]+\s*)?[A-Za-z][A-Za-z0-9\s]*", None;
    HostName: "HostName", "Name or IP address of a host, without a port.", r"[^/\s]+", None;
    HostPattern: "HostPattern", "Host with an optional port, such as \"api.example.com\" or \"*.example.com:8443\".", r"[^/\s]+", None;
    Allow: "Allow", "Address or network with an optional port, such as \"10.0.0.0/8\".", r"[0-9A-Fa-f.:/\[\]]+", None;
}

impl JsonSchema for OneOrMany {
    fn schema_name() -> Cow<'static, str> {
        "OneOrMany".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = generator.subschema_for::<FromText<String>>();
        json_schema!({ "anyOf": [text, { "type": "array", "items": text }] })
    }
}

impl JsonSchema for ExpressionSetting {
    fn schema_name() -> Cow<'static, str> {
        "Expression".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<Self>();
        let list = json_schema!({ "type": "array", "items": one });
        json_schema!({
            "description": "Place of a number such as \"json:/max_tokens\", a number, a list of which the first that is present counts, or one of the operators.",
            "anyOf": [
                { "type": ["string", "number"] },
                list,
                { "type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": false,
                  "properties": { "sum": list, "max": list, "learned": one } },
            ],
        })
    }
}

impl JsonSchema for OnErrorSetting {
    fn schema_name() -> Cow<'static, str> {
        "OnError".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Cost of a request that is answered with an error, for all errors or by status.",
            "anyOf": [
                { "enum": ["keep", "refund"] },
                { "type": "object", "additionalProperties": false,
                  "patternProperties": { "^(?:[45][0-9][0-9]|[45][xX][xX])$": { "enum": ["keep", "refund"] } } },
            ],
        })
    }
}
