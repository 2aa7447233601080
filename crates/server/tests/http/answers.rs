//! What accepted requests are answered with.

use outrank_server::ServerConfig;
use serde_json::{Value, json};

use crate::scripted::{REPLY, Script};
use crate::support::{chunks, events, json_of, serve, serve_default};

#[tokio::test]
async fn a_chat_is_answered_whole_with_usage_and_headers() {
    let server = serve_default().await;
    let response = server.chat(json!({})).await;
    let headers = response.headers().clone();
    let body = json_of(response).await;
    assert_eq!(body["object"], "chat.completion");
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        body["choices"][0]["message"],
        json!({ "role": "assistant", "content": REPLY.concat(), "refusal": null })
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let prompt_tokens = "<user>Hi".len();
    let usage =
        json!({ "prompt_tokens": prompt_tokens, "completion_tokens": 5, "total_tokens": prompt_tokens + 5 });
    assert_eq!(body["usage"], usage);
    assert_eq!(headers["x-outrank-position"], "0");
    assert!(headers["x-outrank-eta-ms"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    assert!(!headers.contains_key("x-outrank-predicted-tokens"), "nothing was predicted");
}

#[tokio::test]
async fn a_stream_opens_with_the_role_and_ends_with_reason_usage_and_done() {
    let server = serve_default().await;
    let response = server.chat(json!({ "stream": true, "stream_options": { "include_usage": true } })).await;
    assert!(response.headers().contains_key("x-outrank-position"), "streams have the headers too");
    let chunks = chunks(response).await;
    let (last, rest) = chunks.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(5)));
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert!(
        chunks.iter().all(|chunk| chunk["id"] == last["id"] && chunk["object"] == "chat.completion.chunk")
    );
    let choices: Vec<&Value> = rest.iter().map(|chunk| &chunk["choices"][0]).collect();
    assert_eq!(choices[0]["delta"], json!({ "role": "assistant", "content": "" }));
    let deltas: Vec<_> =
        choices[1..6].iter().map(|choice| choice["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(deltas, REPLY);
    assert_eq!(choices[6], &json!({ "index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop" }));
    assert_eq!(choices.len(), 7);
}

#[tokio::test]
async fn usage_in_a_stream_comes_only_when_asked_for_and_with_every_chunk_on_request() {
    let server = serve_default().await;
    let plain = chunks(server.chat(json!({ "stream": true })).await).await;
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()));
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    let counted = chunks(server.complete(json!({ "stream": true, "stream_options": options })).await).await;
    let so_far: Vec<_> =
        counted.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(so_far, [1, 2, 3, 4, 5, 5, 5]);
}

#[tokio::test]
async fn an_answer_that_a_client_dumps_with_all_its_nulls_is_taken_back_as_a_message() {
    let server = serve_default().await;
    // `message.model_dump()` of the Python package.
    let dumped = json!({
        "content": "Paris.", "refusal": null, "role": "assistant", "annotations": null, "audio": null,
        "function_call": null, "tool_calls": null,
    });
    let messages =
        json!([{ "role": "user", "content": "Hi" }, dumped, { "role": "user", "content": "And?" }]);
    assert_eq!(server.chat(json!({ "messages": messages })).await.status(), 200);
}

#[tokio::test]
async fn a_completion_streams_text_without_a_role() {
    let server = serve_default().await;
    let chunks = chunks(server.complete(json!({ "stream": true, "max_tokens": 2 })).await).await;
    let texts: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["The", " capital", ""]);
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[0]["object"], "text_completion");
}

#[tokio::test]
async fn several_outputs_are_several_draws_interleaved_in_the_stream() {
    let server = serve_default().await;
    let chunks = chunks(server.chat(json!({ "n": 3, "seed": 7, "stream": true })).await).await;
    let indexes: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["index"].as_u64().unwrap()).collect();
    for index in 0..3 {
        assert_eq!(indexes.iter().filter(|&&other| other == index).count(), 7, "{indexes:?}");
    }
    assert!(!indexes.is_sorted(), "one after the other is not interleaved: {indexes:?}");
    let seeds: Vec<_> = server.engine.seen().iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds, [Some(7), Some(8), Some(9)]);

    let body = json_of(server.chat(json!({ "n": 2 })).await).await;
    assert_eq!(body["choices"].as_array().unwrap().len(), 2);
    assert_eq!(body["usage"]["completion_tokens"], 10);
    assert_eq!(body["usage"]["prompt_tokens"], "<user>Hi".len(), "the prompt counts once");
}

#[tokio::test]
async fn a_completion_takes_several_prompts_of_text_or_tokens() {
    let server = serve_default().await;
    for (prompt, lengths) in [
        (json!("abc"), vec![3]),
        (json!(["a", "bcd"]), vec![1, 3]),
        (json!([5, 6, 7]), vec![3]),
        (json!([[5, 6], [7]]), vec![2, 1]),
    ] {
        let before = server.engine.seen().len();
        let body = json_of(server.complete(json!({ "prompt": prompt })).await).await;
        let seen: Vec<_> =
            server.engine.seen()[before..].iter().map(|request| request.prompt.len()).collect();
        assert_eq!(seen, lengths, "{prompt}");
        assert_eq!(body["choices"].as_array().unwrap().len(), lengths.len(), "{prompt}");
    }
}

#[tokio::test]
async fn log_probabilities_have_the_shape_of_each_protocol() {
    let server = serve_default().await;
    let chat = json_of(server.chat(json!({ "logprobs": true, "top_logprobs": 2 })).await).await;
    let tokens = &chat["choices"][0]["logprobs"]["content"];
    assert_eq!(tokens.as_array().unwrap().len(), 5);
    assert_eq!((&tokens[3]["token"], &tokens[3]["logprob"]), (&json!(" Paris"), &json!(-0.5)));
    assert_eq!(
        tokens[0]["top_logprobs"][1],
        json!({ "token": " capital", "logprob": -1.5, "bytes": b" capital" })
    );

    let text = json_of(server.complete(json!({ "logprobs": 1 })).await).await;
    let logprobs = &text["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(REPLY));
    assert_eq!(logprobs["text_offset"], json!([0, 3, 11, 14, 20]));
    assert_eq!(logprobs["top_logprobs"][0], json!({ "The": -0.5 }));

    let streamed = chunks(server.complete(json!({ "logprobs": 0, "stream": true })).await).await;
    assert_eq!(streamed[1]["choices"][0]["logprobs"]["text_offset"], json!([3]));
    let without = json_of(server.chat(json!({})).await).await;
    assert!(without["choices"][0]["logprobs"].is_null());
}

#[tokio::test]
async fn every_sampling_setting_reaches_the_engine() {
    let server = serve_default().await;
    let settings = json!({
        "temperature": 0.5, "top_p": 0.25, "top_k": 4, "min_p": 0.125, "presence_penalty": 1, "frequency_penalty": -1,
        "seed": -1, "stop": ["a", "b"], "ignore_eos": true, "max_completion_tokens": 9, "max_tokens": 9,
        "outrank": { "true_output_tokens": 9 },
    });
    json_of(server.chat(settings).await).await;
    let request = &server.engine.seen()[0];
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.5, 0.25, 4, 0.125));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (1.0, -1.0));
    assert_eq!((sampling.seed, sampling.max_tokens, sampling.ignore_eos), (Some(u64::MAX), 9, true));
    assert_eq!(sampling.stop, ["a", "b"]);
    assert_eq!(request.true_tokens, Some(9));
}

#[tokio::test]
async fn an_output_limit_that_nobody_names_is_the_default_or_what_the_context_leaves() {
    let config = ServerConfig { default_max_tokens: 100, ..ServerConfig::default() };
    let server = serve(Script::default(), config, None).await;
    json_of(server.complete(json!({ "prompt": "a" })).await).await;
    json_of(server.complete(json!({ "prompt": "a".repeat(500) })).await).await;
    let limits: Vec<_> = server.engine.seen().iter().map(|request| request.sampling.max_tokens).collect();
    assert_eq!(limits, [100, 12]);
}

#[tokio::test]
async fn text_parts_are_joined_and_developers_speak_as_the_system() {
    let server = serve_default().await;
    let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
    let messages =
        json!([{ "role": "developer", "content": "Be brief." }, { "role": "user", "content": parts }]);
    json_of(server.chat(json!({ "messages": messages })).await).await;
    let prompt: Vec<u8> = server.engine.seen()[0].prompt.iter().map(|&token| token as u8).collect();
    assert_eq!(String::from_utf8(prompt).unwrap(), "<system>Be brief.<user>a\nb");
}

#[tokio::test]
async fn fields_that_ask_for_nothing_are_accepted() {
    let server = serve_default().await;
    let idle = json!({
        "tools": [], "tool_choice": "none", "response_format": { "type": "text" }, "logit_bias": {}, "audio": null,
        "modalities": ["text"], "n": 1, "parallel_tool_calls": false, "store": true, "metadata": { "a": "b" },
        "user": "u", "service_tier": "auto", "temperature": null, "max_tokens": null, "stop": null,
        "stream_options": null, "repetition_penalty": 1.0,
    });
    assert_eq!(server.chat(idle).await.status(), 200);
    assert_eq!(server.complete(json!({ "echo": false, "suffix": "", "best_of": 1 })).await.status(), 200);
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_an_error_event_and_no_done() {
    let server = serve_default().await;
    server.engine.hold();
    let response = server.chat(json!({ "stream": true })).await;
    server.engine.fail();
    server.engine.release();
    let events = events(response).await;
    let error: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "generation_failed");
    assert_eq!(server.metric("outrank_requests_total{outcome=\"failed\"}").await, 1.0);
}

#[tokio::test]
async fn a_client_may_name_its_request_and_otherwise_gets_a_name() {
    let server = serve_default().await;
    let url = format!("{}/health/live", server.url);
    let named = server.client.get(&url).header("x-request-id", "mine-1").send().await.unwrap();
    assert_eq!(named.headers()["x-request-id"], "mine-1");
    let odd = server.client.get(&url).header("x-request-id", "a b").send().await.unwrap();
    assert!(odd.headers()["x-request-id"].to_str().unwrap().starts_with("req-"));
}

#[tokio::test]
async fn the_model_is_listed_under_its_name() {
    let server = serve_default().await;
    let list = json_of(server.get("/v1/models").await).await;
    assert_eq!(list["data"][0]["id"], "test");
    assert_eq!(json_of(server.get("/v1/models/test").await).await["max_model_len"], 512);
}
