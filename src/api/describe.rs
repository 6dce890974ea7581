//! Descriptions of calls, and the OpenAPI 3.1 document of a port that is built from them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use http::Method;
use schemars::transform::{RecursiveTransform, ReplaceBoolSchemas};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::exchange::Reason;

/// Media type of most bodies.
const JSON: &str = "application/json";
/// Media type of errors.
const PROBLEM: &str = "application/problem+json";

/// Schema of a type, which a generator adds to its definitions.
#[derive(Clone, Copy)]
struct SchemaOf(fn(&mut SchemaGenerator) -> Schema);

impl SchemaOf {
    fn of<T: JsonSchema>() -> Self {
        Self(SchemaGenerator::subschema_for::<T>)
    }
}

impl fmt::Debug for SchemaOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SchemaOf")
    }
}

/// Body of any bytes.
#[derive(Debug)]
pub(super) struct AnyBytes;

impl JsonSchema for AnyBytes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AnyBytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Generators of clients expect this format for a body of bytes.
        schemars::json_schema!({ "type": "string", "format": "binary" })
    }
}

/// Content of a request or of a response: its media type with its schema.
type Content = (&'static str, SchemaOf);

/// Description of one call: its parameters, bodies, responses and tokens.
#[derive(Debug, Clone)]
pub struct CallSpec {
    id: &'static str,
    /// Method of the call.
    pub method: Method,
    /// Path with its parameters in braces.
    pub path: &'static str,
    summary: &'static str,
    needs: Option<&'static str>,
    parameters: Vec<Parameter>,
    bodies: Vec<Content>,
    answers: Vec<(&'static str, &'static str, Vec<Content>)>,
    refusals: Vec<(u16, &'static str)>,
    problem: Option<SchemaOf>,
    security: Option<Value>,
}

#[derive(Debug, Clone)]
struct Parameter {
    name: &'static str,
    place: &'static str,
    about: &'static str,
    required: bool,
    schema: Value,
}

impl CallSpec {
    fn new(method: Method, path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self {
            id,
            method,
            path,
            summary,
            needs: None,
            parameters: Vec::new(),
            bodies: Vec::new(),
            answers: Vec::new(),
            refusals: Vec::new(),
            problem: None,
            security: None,
        }
    }

    /// Describes a GET with its name for generated clients.
    pub fn get(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::GET, path, id, summary)
    }

    /// Describes a POST with its name for generated clients.
    pub fn post(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::POST, path, id, summary)
    }

    /// Describes a PATCH with its name for generated clients.
    pub fn patch(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::PATCH, path, id, summary)
    }

    /// Describes a DELETE with its name for generated clients.
    pub fn delete(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::DELETE, path, id, summary)
    }

    /// Sets the permission that the caller needs, as a sentence.
    pub const fn needs(mut self, permission: &'static str) -> Self {
        self.needs = Some(permission);
        self
    }

    fn parameter(
        mut self,
        place: &'static str,
        name: &'static str,
        about: &'static str,
        schema: Value,
    ) -> Self {
        self.parameters.push(Parameter {
            name,
            place,
            about,
            required: false,
            schema,
        });
        self
    }

    /// Adds a parameter of the query.
    pub fn query(self, name: &'static str, about: &'static str, schema: Value) -> Self {
        self.parameter("query", name, about, schema)
    }

    /// Adds a header field that the call reads.
    pub fn field(self, name: &'static str, about: &'static str, schema: Value) -> Self {
        self.parameter("header", name, about, schema)
    }

    /// Marks the parameter that was added last as required.
    pub fn required(mut self) -> Self {
        if let Some(last) = self.parameters.last_mut() {
            last.required = true;
        }
        self
    }

    /// Adds a JSON body, which is parsed as `T`.
    pub fn takes<T: JsonSchema>(self) -> Self {
        self.takes_as::<T>(JSON)
    }

    /// Adds a body of another media type.
    pub fn takes_as<T: JsonSchema>(mut self, kind: &'static str) -> Self {
        self.bodies.push((kind, SchemaOf::of::<T>()));
        self
    }

    /// Adds a response with a JSON body, which is printed from `T`.
    pub fn answers<T: JsonSchema>(self, status: &'static str, about: &'static str) -> Self {
        self.answers_as::<T>(status, JSON, about)
    }

    /// Adds a response of another media type.
    pub fn answers_as<T: JsonSchema>(
        mut self,
        status: &'static str,
        kind: &'static str,
        about: &'static str,
    ) -> Self {
        let content = (kind, SchemaOf::of::<T>());
        match self.answers.iter_mut().find(|(known, ..)| *known == status) {
            Some((.., contents)) => contents.push(content),
            None => self.answers.push((status, about, vec![content])),
        }
        self
    }

    /// Adds the reasons for which this call is refused, apart from those of all calls.
    pub fn refuses(mut self, reasons: &[Reason]) -> Self {
        let rows = reasons.iter().map(|reason| reason.row());
        self.refusals
            .extend(rows.map(|row| (row.status.as_u16(), row.meaning)));
        self
    }

    /// Adds an error by its status and its meaning.
    pub fn fails(mut self, status: u16, about: &'static str) -> Self {
        self.refusals.push((status, about));
        self
    }

    /// Sets the schema of errors for this call, in place of the schema of the port.
    #[must_use]
    pub fn problems<T: JsonSchema>(mut self) -> Self {
        self.problem = Some(SchemaOf::of::<T>());
        self
    }

    /// Sets the security requirement of this call, in place of the requirement of the port.
    pub fn secured(mut self, requirement: Value) -> Self {
        self.security = Some(requirement);
        self
    }

    /// Names of the parameters in the path, in their order.
    fn path_names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.path.split(['{', '}']).skip(1).step_by(2)
    }

    /// Returns true if the call has parameters in its query.
    pub fn has_query(&self) -> bool {
        let mut parameters = self.parameters.iter();
        parameters.any(|parameter| parameter.place == "query")
    }

    /// Returns true if the call has this path. `segments` follow `/v1`.
    pub(super) fn is_at(&self, segments: &[&str]) -> bool {
        let mut own = self.path.split('/').skip(2);
        let matches = |segment: &&str| {
            own.next()
                .is_some_and(|own| own.starts_with('{') || own == *segment)
        };
        segments.iter().all(matches) && own.next().is_none()
    }
}

/// Parts of a document that all calls of a port share.
#[derive(Debug)]
pub struct PortDescription {
    /// Name of the document.
    pub title: &'static str,
    /// Ways to send a token, as `securitySchemes`.
    pub schemes: Value,
    /// Security requirement of a call without its own.
    pub security: Value,
    /// Errors that each call with a token may have, with their status.
    pub refusals: Vec<(u16, &'static str)>,
}

/// Generators for both directions. An optional field may be absent in a request, and is null in a
/// response.
struct Schemas {
    requests: SchemaGenerator,
    responses: SchemaGenerator,
}

impl Schemas {
    fn new() -> Self {
        let settings = || {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
            let mut objects = ReplaceBoolSchemas::default();
            objects.skip_additional_properties = true;
            settings
                .with_transform(objects)
                .with_transform(RecursiveTransform(join_words))
        };
        Self {
            requests: settings().into_generator(),
            responses: settings().for_serialize().into_generator(),
        }
    }

    /// Returns all definitions. A type of both directions is described as requests write it, which
    /// its responses fit, too.
    fn definitions(mut self) -> Map<String, Value> {
        let mut all = self.responses.take_definitions(true);
        all.extend(self.requests.take_definitions(true));
        all
    }
}

/// Replaces alternatives that are constant words by one list of words. Generators of clients read
/// only such a list as an enumeration.
fn join_words(schema: &mut Schema) {
    let Some(Value::Array(each)) = schema.remove("oneOf") else {
        return;
    };
    let is_word = |one: &Value| one["const"].is_string();
    let (words, mut others): (Vec<Value>, Vec<Value>) = each.into_iter().partition(is_word);
    let mut texts = Vec::new();
    for word in &words {
        let text = word["description"].as_str().unwrap_or_default();
        texts.push(format!(
            "`{}`: {text}",
            word["const"].as_str().unwrap_or_default()
        ));
    }
    let list: Vec<&Value> = words.iter().map(|word| &word["const"]).collect();
    if others.is_empty() {
        let about = schema.get("description").and_then(Value::as_str);
        let about = about.unwrap_or_default().to_owned() + "\n\n" + &texts.join("\n\n");
        schema.insert("description".to_owned(), about.into());
        schema.insert("type".to_owned(), "string".into());
        schema.insert("enum".to_owned(), json!(list));
        return;
    }
    if !list.is_empty() {
        let about = texts.join("\n\n");
        others.push(json!({ "type": "string", "enum": list, "description": about }));
    }
    schema.insert("oneOf".to_owned(), others.into());
}

fn content(contents: &[Content], schemas: &mut SchemaGenerator) -> Value {
    let content = contents
        .iter()
        .map(|(kind, schema)| (*kind, json!({ "schema": (schema.0)(schemas) })));
    content.collect()
}

impl PortDescription {
    /// Builds the OpenAPI document of these calls. `P` is the form of their errors.
    pub fn document<'c, P: JsonSchema>(
        &self,
        calls: impl IntoIterator<Item = &'c CallSpec>,
    ) -> Value {
        let mut schemas = Schemas::new();
        let mut paths = Map::new();
        for call in calls {
            let method = call.method.as_str().to_ascii_lowercase();
            let described = self.call(call, SchemaOf::of::<P>(), &mut schemas);
            paths.entry(call.path).or_insert_with(|| json!({}))[method] = described;
        }
        json!({
            "openapi": "3.1.0",
            "info": { "title": self.title, "version": env!("CARGO_PKG_VERSION") },
            "paths": paths,
            "components": {
                "schemas": schemas.definitions(),
                "securitySchemes": self.schemes,
            },
        })
    }

    fn call(&self, call: &CallSpec, problem: SchemaOf, schemas: &mut Schemas) -> Value {
        let in_path = call.path_names().map(|name| {
            json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
        });
        let others = call.parameters.iter().map(|parameter| {
            json!({
                "name": parameter.name,
                "in": parameter.place,
                "description": parameter.about,
                "required": parameter.required,
                "schema": parameter.schema,
            })
        });
        let mut described = json!({
            "operationId": call.id,
            "summary": call.summary,
            "parameters": in_path.chain(others).collect::<Vec<_>>(),
            "responses": self.responses(call, call.problem.unwrap_or(problem), schemas),
            "security": call.security.as_ref().unwrap_or(&self.security),
        });
        if let Some(needs) = call.needs {
            described["description"] = needs.into();
        }
        if !call.bodies.is_empty() {
            let content = content(&call.bodies, &mut schemas.requests);
            described["requestBody"] = json!({ "content": content });
        }
        described
    }

    fn responses(&self, call: &CallSpec, problem: SchemaOf, schemas: &mut Schemas) -> Value {
        let mut responses: BTreeMap<String, Value> = BTreeMap::new();
        for (status, about, contents) in &call.answers {
            let content = content(contents, &mut schemas.responses);
            let response = json!({ "description": about, "content": content });
            responses.insert((*status).to_owned(), response);
        }
        // A call without security has no errors that all other calls have.
        let is_open = call
            .security
            .as_ref()
            .is_some_and(|needed| *needed == json!([]));
        let common = self.refusals.iter().filter(|_| !is_open);
        let mut errors: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (status, about) in common.chain(&call.refusals) {
            let known = errors.entry(status.to_string()).or_default();
            if !known.contains(about) {
                known.push(about);
            }
        }
        if !is_open {
            errors.insert("default".to_owned(), vec!["Any other error."]);
        }
        for (status, about) in errors {
            let schema = (problem.0)(&mut schemas.responses);
            let described = json!({ "description": about.join(" "), "content": {} });
            let response = responses.entry(status).or_insert(described);
            response["content"][PROBLEM] = json!({ "schema": schema });
        }
        json!(responses)
    }
}
