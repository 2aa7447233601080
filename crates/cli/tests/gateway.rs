//! `outrank serve --upstream` and `outrank check`: the binary before a server that is not real.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{FakeServer, FakeState, fails, file, json, outrank, run, without_settings};
use outrank_ranker::features::VERSION;
use serde_json::json;

/// A running gateway; it is killed with its test.
struct Gateway {
    child: Child,
    url: String,
}

impl Gateway {
    fn start(dir: &Path, args: &[&str]) -> Self {
        Self::of(&mut outrank(dir, &[&["serve", "--json", "--port", "0"][..], args].concat()))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command
            .env("OUTRANK_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).expect("a ready line");
        Self { url: ready["url"].as_str().unwrap().into(), child }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Reads what it logs, to its end.
    fn log(&mut self) -> JoinHandle<String> {
        let mut stderr = self.child.stderr.take().unwrap();
        std::thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        })
    }

    /// Asks it to stop; gives its exit code and all that it logged.
    fn stop(mut self) -> (Option<i32>, String) {
        self.signal("-TERM");
        let log = self.log().join().unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client() -> reqwest::Client {
    // An error means that another test of this process has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

/// Status and body of an answer.
fn ask(url: &str, key: &str, prompt: &str) -> (u16, String) {
    let body =
        json!({ "model": "fake", "stream": true, "messages": [{ "role": "user", "content": prompt }] });
    fetch(client().post(format!("{url}/v1/chat/completions")).bearer_auth(key).json(&body))
}

fn fetch(request: reqwest::RequestBuilder) -> (u16, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    })
}

fn sha256(text: &str) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn it_serves_reloads_its_keys_on_hangup_and_leaves_when_told_and_logs_neither_prompts_nor_keys() {
    let (dir, upstream) = (tempfile::tempdir().unwrap(), FakeServer::start(FakeState::default()));
    let with_key = |key: &str| {
        let text = format!(
            "[gateway]\nupstream = [\"{}\"]\n[[tenants]]\nname = \"a\"\nkey_sha256 = [\"{}\"]\n",
            upstream.url,
            sha256(key)
        );
        file(dir.path(), "outrank.toml", &text);
    };
    with_key("first-SECRET-key");
    let gateway = Gateway::start(dir.path(), &["--journal", "j.jsonl"]);
    let (status, text) = ask(&gateway.url, "first-SECRET-key", "say my-PRIVATE-words twice please");
    assert!(status == 200 && text.ends_with("data: [DONE]\n\n"), "{status} {text}");
    assert_eq!(ask(&gateway.url, "a-wrong-SECRET-key", "my-PRIVATE-words").0, 401);
    let odd = format!("{}/v1/nothing/odd-SECRET-key", gateway.url);
    assert_eq!(fetch(client().get(odd)).0, 404);
    with_key("second-SECRET-key");
    gateway.signal("-HUP");
    let started = Instant::now();
    while ask(&gateway.url, "second-SECRET-key", "my-PRIVATE-words").0 != 200 {
        assert!(started.elapsed() < Duration::from_secs(10), "the new key is not taken");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask(&gateway.url, "first-SECRET-key", "my-PRIVATE-words").0, 401, "the old key is revoked");
    file(dir.path(), "outrank.toml", "[gateway]\nupstreem = 3\n");
    gateway.signal("-HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        ask(&gateway.url, "second-SECRET-key", "my-PRIVATE-words").0,
        200,
        "bad settings change nothing"
    );
    let (_, metrics) = fetch(client().get(format!("{}/metrics", gateway.url)));
    assert!(metrics.contains("outrank_requests_total{outcome=\"completed\"}"));
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("settings reloaded") && log.contains("upstreem") && log.contains("refused"),
        "{log}"
    );
    let journal = std::fs::read_to_string(dir.path().join("j.jsonl")).unwrap();
    assert!(journal.contains("\"output_tokens\":"));
    for (what, text) in [("log", &log), ("metrics", &metrics), ("journal", &journal)] {
        assert!(!text.contains("PRIVATE") && !text.contains("SECRET"), "{what}: {text}");
    }
}

#[test]
fn the_journal_keeps_features_unless_told_not_to() {
    let upstream = FakeServer::start(FakeState::default());
    for (features, said) in [("", true), ("journal_features = false\n", false)] {
        let dir = tempfile::tempdir().unwrap();
        let settings = format!("[gateway]\nupstream = [\"{}\"]\n{features}", upstream.url);
        file(dir.path(), "outrank.toml", &settings);
        let gateway = Gateway::start(dir.path(), &["--journal", "j.jsonl"]);
        assert_eq!(ask(&gateway.url, "none", "say it twice").0, 200);
        assert_eq!(gateway.stop().0, Some(0));
        let journal = std::fs::read_to_string(dir.path().join("j.jsonl")).unwrap();
        let packed = format!("\"features\":\"{VERSION}:");
        assert!(journal.contains("\"output_tokens\":") && journal.contains(&packed) == said, "{journal}");
    }
}

#[test]
fn a_gateway_that_is_stopped_right_after_its_answers_writes_all_their_lines_first() {
    let (dir, upstream) = (tempfile::tempdir().unwrap(), FakeServer::start(FakeState::default()));
    let path = dir.path().join("j.jsonl");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    // A disk that takes nothing until it is told to: the lines are longer than what a pipe holds by itself.
    let (go, told) = std::sync::mpsc::channel();
    let disk = std::thread::spawn({
        let path = path.clone();
        move || {
            let mut pipe = std::fs::File::open(path).unwrap();
            told.recv().unwrap();
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            text
        }
    });
    let args = ["--upstream", &upstream.url, "--journal", "j.jsonl", "--journal-prompts", "--drain-s", "600"];
    let mut gateway = Gateway::start(dir.path(), &args);
    let log = gateway.log();
    let prompt = "x".repeat(60_000);
    (0..4).for_each(|_| assert_eq!(ask(&gateway.url, "none", &prompt).0, 200));
    gateway.signal("-TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(gateway.child.try_wait().unwrap(), None, "it left before its lines were written");
    go.send(()).unwrap();
    assert_eq!(gateway.child.wait().unwrap().code(), Some(0), "{}", log.join().unwrap());
    let text = disk.join().unwrap();
    assert_eq!(text.lines().filter(|line| line.ends_with('}')).count(), 4, "{} bytes", text.len());
}

#[test]
fn a_journal_that_may_grow_no_further_costs_lines_and_nothing_else() {
    let (dir, upstream) = (tempfile::tempdir().unwrap(), FakeServer::start(FakeState::default()));
    let script = "ulimit -f 1; exec \"$0\" serve --json --port 0 --upstream \"$1\" --journal j.jsonl";
    let args = ["-c", script, env!("CARGO_BIN_EXE_outrank"), &upstream.url];
    let mut limited = without_settings(dir.path(), "bash", &args);
    let gateway = Gateway::of(&mut limited);
    for _ in 0..8 {
        assert_eq!(ask(&gateway.url, "none", "say it twice").0, 200);
    }
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the journal cannot be written"), "{log}");
    let journal = std::fs::read_to_string(dir.path().join("j.jsonl")).unwrap();
    assert!(journal.len() <= 1024 && journal.starts_with('{'), "{journal}");
}

#[test]
fn check_says_whether_settings_are_good_and_upstreams_answer() {
    let (dir, upstream) = (tempfile::tempdir().unwrap(), FakeServer::start(FakeState::default()));
    let report = json(dir.path(), &["check", "--upstream", &upstream.url]);
    assert_eq!(
        (&report["upstreams"][0]["up"], &report["upstreams"][0]["says"]),
        (&json!(true), &json!("serves fake"))
    );
    let (code, text) = fails_after_output(dir.path(), &["check", "--upstream", "http://127.0.0.1:9"]);
    assert!(code == 1 && text.contains("not all upstreams answer"), "{text}");
}

/// Exit code and stderr of a run that prints a result and fails.
fn fails_after_output(dir: &Path, args: &[&str]) -> (i32, String) {
    let output = run(dir, args);
    (output.status.code().unwrap(), common::stderr(&output))
}

#[test]
fn settings_that_make_no_sense_are_wrong_usage_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = ["--upstream", "http://127.0.0.1:9"];
    for (args, word) in [
        (&["--upstream", "localhost:1"][..], "http://"),
        (&["--upstream", "http://a weight=-1"], "weight"),
        (&["--window", "4"], "--upstream"),
        (&[&upstream[..], &["--model", "x.gguf"]].concat(), "engine"),
        (&[&upstream[..], &["--policy", "ltr"]].concat(), "ltr"),
        (&[&upstream[..], &["--mode", "push"]].concat(), "hold or stamp"),
        (&[&upstream[..], &["--window", "0"]].concat(), "--window"),
        (&[&upstream[..], &["--tls-cert", "c.pem"]].concat(), "--tls-key"),
        (&[&upstream[..], &["--journal-mib", "3"]].concat(), "--journal"),
        (&[&upstream[..], &["--journal-features=false"]].concat(), "--journal"),
        (&[&upstream[..], &["--stall-timeout-s", "0"]].concat(), "stall_timeout_s"),
        (&[&upstream[..], &["--scoring-share", "0"]].concat(), "scoring_share"),
        (&[&upstream[..], &["--model-name", "x"]].concat(), "--model-name"),
    ] {
        for command in ["serve", "check"] {
            let (code, text) = fails(dir.path(), &[&[command][..], args].concat());
            assert!(code == 2 && text.contains(word), "{command} {args:?}: {code} {text}");
        }
    }
    file(
        dir.path(),
        "outrank.toml",
        "[gateway]\nupstream = [\"http://a\"]\n[[tenants]]\nname = \"a\"\nkey = \"plain\"\n",
    );
    let (code, text) = fails(dir.path(), &["check"]);
    assert!(code == 2 && text.contains("key"), "{text}");
}
