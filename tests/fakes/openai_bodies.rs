//! Bodies of OpenAI's API: Chat Completions and Responses, whole and as events.

use serde_json::{Value, json};

use super::prompt::Prompt;
use super::{FakeAnswer, FakeEvent, FakeRequest};

/// Returns the successful answer to a request, as its path and its body ask.
pub(super) fn answer(request: &FakeRequest, prompt: Prompt) -> FakeAnswer {
    let asked = request.json();
    let streams = asked["stream"] == true;
    let model = asked["model"].as_str().unwrap_or("-");
    match (request.path.ends_with("/responses"), streams) {
        (true, _) => responses(model, prompt, streams),
        (false, false) => FakeAnswer::ok(completion(model, prompt)),
        (false, true) => {
            let usage = asked["stream_options"]["include_usage"] == true;
            chunks(model, prompt, usage)
        }
    }
}

fn chat_usage(prompt: Prompt) -> Value {
    json!({
        "prompt_tokens": prompt.input,
        "completion_tokens": prompt.output,
        "total_tokens": prompt.input + prompt.output,
    })
}

fn completion(model: &str, prompt: Prompt) -> Value {
    json!({
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_795_694_400,
        "model": model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": prompt.text(), "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": chat_usage(prompt),
    })
}

/// Returns the chunks of a stream. Without `usage` no chunk states it, as the API does by default.
fn chunks(model: &str, prompt: Prompt, usage: bool) -> FakeAnswer {
    let chunk = |choices: Value, stated: Value| {
        let mut chunk = json!({
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_795_694_400,
            "model": model,
            "choices": choices,
        });
        if usage {
            chunk["usage"] = stated;
        }
        format!("data: {chunk}\n\n")
    };
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    let role = choice(json!({"role": "assistant", "content": ""}), Value::Null);
    let mut events = vec![FakeEvent::new(chunk(role, Value::Null), 0)];
    events.extend(prompt.deltas().map(|(text, tokens)| {
        let delta = choice(json!({"content": text}), Value::Null);
        FakeEvent::new(chunk(delta, Value::Null), tokens)
    }));
    let end = choice(json!({}), json!("stop"));
    events.push(FakeEvent::new(chunk(end, Value::Null), 0));
    if usage {
        let stated = chunk(json!([]), chat_usage(prompt));
        events.push(FakeEvent::new(stated, 0));
    }
    events.push(FakeEvent::new("data: [DONE]\n\n".to_owned(), 0));
    FakeAnswer {
        events,
        ..FakeAnswer::ok(Value::Null)
    }
}

/// Returns a response object, which has output and usage once it is completed.
fn response(model: &str, prompt: Option<Prompt>) -> Value {
    let output = prompt.map(|prompt| json!([message(&prompt.text(), "completed")]));
    let usage = prompt.map(|prompt| {
        json!({
            "input_tokens": prompt.input,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": prompt.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt.input + prompt.output,
        })
    });
    json!({
        "id": "resp-1",
        "object": "response",
        "created_at": 1_795_694_400,
        "status": if prompt.is_some() { "completed" } else { "in_progress" },
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "metadata": {},
        "model": model,
        "output": output.unwrap_or_else(|| json!([])),
        "parallel_tool_calls": true,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage,
    })
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn message(text: &str, status: &str) -> Value {
    let content = match text {
        "" => json!([]),
        text => json!([part(text)]),
    };
    json!({"id": "msg-1", "type": "message", "role": "assistant", "status": status, "content": content})
}

fn responses(model: &str, prompt: Prompt, streams: bool) -> FakeAnswer {
    if !streams {
        return FakeAnswer::ok(response(model, Some(prompt)));
    }
    let text = prompt.text();
    let place = json!({"item_id": "msg-1", "output_index": 0, "content_index": 0});
    let placed = |kind: &str, name: &str, value: Value| {
        let mut data = place.clone();
        data["type"] = kind.into();
        data[name] = value;
        data
    };
    let begun = response(model, None);
    let mut data = vec![
        (json!({"type": "response.created", "response": begun}), 0),
        (
            json!({"type": "response.output_item.added", "output_index": 0, "item": message("", "in_progress")}),
            0,
        ),
        (placed("response.content_part.added", "part", part("")), 0),
    ];
    data.extend(prompt.deltas().map(|(text, tokens)| {
        let mut delta = placed("response.output_text.delta", "delta", text.into());
        delta["logprobs"] = json!([]);
        (delta, tokens)
    }));
    let mut done = placed("response.output_text.done", "text", text.as_str().into());
    done["logprobs"] = json!([]);
    let full = response(model, Some(prompt));
    data.extend([
        (done, 0),
        (placed("response.content_part.done", "part", part(&text)), 0),
        (json!({"type": "response.output_item.done", "output_index": 0, "item": message(&text, "completed")}), 0),
        (json!({"type": "response.completed", "response": full}), 0),
    ]);
    let events = data
        .into_iter()
        .enumerate()
        .map(|(number, (mut data, tokens))| {
            data["sequence_number"] = number.into();
            FakeEvent::named(&data, tokens)
        });
    FakeAnswer {
        events: events.collect(),
        ..FakeAnswer::ok(Value::Null)
    }
}
