//! `eye dead-letters`: list, show, replay and delete dead letters, with and without a running program.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use eye_harness::{Eye, eventually};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::support::stand_in::answering;
use crate::support::store::{ALL, Kind, Store};
use crate::support::{self, DISK, HANG, config, event, new_event, program, start_with_table};

/// The result of a command.
struct CommandResult {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl CommandResult {
    fn of(output: Output) -> Self {
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        Self { code: output.status.code(), stdout, stderr }
    }

    #[track_caller]
    fn succeeded(self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    fn failed(self, expected: &[&str]) -> String {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        assert!(expected.iter().all(|text| self.stderr.contains(text)), "{expected:?}: {}", self.stderr);
        self.stdout
    }
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    support::command(folder, &[&["dead-letters", "--config", "eye.toml"], arguments].concat())
}

fn dead_letters(folder: &Path, arguments: &[&str]) -> CommandResult {
    CommandResult::of(block_in_place(|| command(folder, arguments).output().unwrap()))
}

fn list(eye: &Eye) -> Vec<Value> {
    dead_letters(eye.folder(), &["list"]).succeeded()
}

fn replay(eye: &Eye, which: &[&str]) -> CommandResult {
    dead_letters(eye.folder(), &[&["replay", "--url", &eye.url("/")], which].concat())
}

async fn until_listed(eye: &Eye, count: usize) -> Vec<Value> {
    let mut letters = Vec::new();
    eventually("dead letters", HANG, async || {
        letters = list(eye);
        letters.len() == count
    })
    .await;
    letters
}

/// Starts the program with a dead letter of each event. The database refuses them until it accepts them again.
async fn start_with_dead_letters(store: &Store, events: &[Value]) -> Eye {
    let eye = start_with_table(store, DISK).await;
    store.refuse().await;
    assert_eq!(eye.post(json!(events)).await.0, 201);
    until_listed(&eye, events.len()).await;
    eye
}

fn refused() -> Value {
    new_event("refused")
}

fn letter_file(eye: &Eye, number: usize) -> PathBuf {
    eye.folder().join(format!("queue/dead-letters/{number:020}.store.letter"))
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_dead_letter_is_stored_once() {
    for kind in ALL {
        let store = Store::new(kind);
        let eye = start_with_table(&store, DISK).await;
        store.refuse().await;
        let (good, bad) = (Uuid::new_v4(), Uuid::new_v4());
        let mut sent = event(bad, "refused").to_string();
        sent = sent.replace(r#"{"n":1}"#, r#"{"z":12345678901234567890,"a":[1.10,"é\n"]}"#);
        assert_eq!(eye.post(format!("[{},{sent}]", event(good, "good"))).await.0, 201);

        let letters = until_listed(&eye, 1).await;
        assert!(eye.logs().contains("`eye dead-letters list` shows them"), "{}", eye.logs());
        let letter = &letters[0];
        assert_eq!((&letter["id"], &letter["refused_by"]), (&json!("transport/1.store"), &json!("sinks.store")));
        let fields = ["session_id", "category", "name", "timestamp"].map(|field| &letter[field]);
        assert_eq!(fields, ["s", "test", "refused", "2021-01-01T09:15:27.243860Z"], "{kind:?}");
        assert!(letter["reason"].as_str().unwrap().contains("no"), "{letter}");
        let shown = dead_letters(eye.folder(), &["show", "transport/1.store"]);
        assert!(shown.stdout.contains(r#""data":{"z":12345678901234567890,"a":[1.10,"é\n"]}"#), "{}", shown.stdout);
        let shown = shown.succeeded();
        assert_eq!((shown.len(), &shown[0]["payload"]["id"]), (1, &json!(bad)));
        assert_eq!(["id", "time", "refused_by", "reason"].map(|field| &shown[0][field]), {
            ["id", "time", "refused_by", "reason"].map(|field| &letter[field])
        });

        // A replay before the cause is removed makes a new dead letter.
        replay(&eye, &["--all"]).succeeded();
        eventually("a new dead letter", HANG, async || {
            let letters = list(&eye);
            letters.len() == 1 && letters[0]["id"] == "transport/2.store"
        })
        .await;

        store.accept_again().await;
        replay(&eye, &["transport/2.store"]).succeeded();
        assert_eq!(list(&eye), [] as [Value; 0]);
        let ids = async || {
            let mut ids = store.ids().await;
            ids.sort();
            ids
        };
        let mut both = [good, bad];
        both.sort();
        eventually("both events are stored once", HANG, async || ids().await == both).await;
        replay(&eye, &["transport/2.store"]).failed(&["no such dead letter", "transport/2.store"]);
        replay(&eye, &["--all"]).succeeded();
        assert_eq!(ids().await, both, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_after_a_crash_stores_no_event_twice() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_with_dead_letters(&store, &[refused()]).await;
    store.accept_again().await;
    let letter = fs::read(letter_file(&eye, 0)).unwrap();
    for _ in 0..2 {
        // A kill after the send leaves the dead letter.
        fs::write(letter_file(&eye, 0), &letter).unwrap();
        replay(&eye, &["--all"]).succeeded();
    }
    // The program stores events in their order.
    let last = Uuid::new_v4();
    assert_eq!(eye.post(event(last, "last")).await.0, 201);
    eventually("the last event is stored", HANG, async || store.has(last).await).await;
    assert_eq!(store.ids().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_replays_store_each_event_once() {
    let store = Store::new(Kind::Sqlite);
    let events: Vec<Value> = (0..20).map(|_| refused()).collect();
    let eye = start_with_dead_letters(&store, &events).await;
    store.accept_again().await;
    let both = thread::scope(|scope| [(); 2].map(|()| scope.spawn(|| replay(&eye, &["--all"]))).map(|it| it.join()));
    both.into_iter().for_each(|done| drop(done.unwrap().succeeded()));
    assert_eq!(list(&eye), [] as [Value; 0]);
    let last = Uuid::new_v4();
    assert_eq!(eye.post(event(last, "last")).await.0, 201);
    eventually("the last event is stored", HANG, async || store.has(last).await).await;
    assert_eq!(store.ids().await.len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_excludes_letters_newer_than_the_command() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_with_dead_letters(&store, &[refused()]).await;
    let later = letter_file(&eye, 7);
    fs::write(&later, "damaged: its time is that of the file").unwrap();
    let file = fs::File::options().write(true).open(&later).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
    for command in [&["replay", "--all", "--url", &eye.url("")][..], &["delete", "--all"]] {
        let done = dead_letters(eye.folder(), command);
        assert!(done.stderr.contains("came_later=1"), "{}", done.stderr);
        done.succeeded();
        assert!(later.exists());
    }
    dead_letters(eye.folder(), &["delete", "transport/7.store"]).succeeded();
    assert!(!later.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_are_named_and_others_processed() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_with_dead_letters(&store, &[refused(), refused(), refused()]).await;
    let wrong = ["transport/9.store", "0.store", "transport/../0.store", "transport/", "sources.web/1.store", ""];
    let ids = [&wrong[..3], &["transport/1.store"], &wrong[3..]].concat();
    let shown = dead_letters(eye.folder(), &[&["show"], &ids[..]].concat()).failed(&wrong);
    assert_eq!(shown.lines().count(), 1);
    dead_letters(eye.folder(), &[&["delete"], &ids[..]].concat()).failed(&wrong);
    assert_eq!(
        list(&eye).iter().map(|letter| &letter["id"]).collect::<Vec<_>>(),
        ["transport/0.store", "transport/2.store"]
    );
    dead_letters(eye.folder(), &["delete", "--all"]).succeeded();
    assert_eq!(list(&eye), [] as [Value; 0]);
    assert!(letter_file(&eye, 0).parent().unwrap().read_dir().unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_commands_but_replay_work_without_the_program() {
    let store = Store::new(Kind::Sqlite);
    let mut eye = start_with_dead_letters(&store, &[refused(), refused()]).await;
    block_in_place(|| eye.kill());
    assert_eq!(list(&eye).len(), 2);
    replay(&eye, &["--all"]).failed(&["no answer from http://127.0.0.1:", "HTTP source", "--url"]);
    dead_letters(eye.folder(), &["replay", "--all"]).failed(&["any free port", "--url"]);
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let file = eye.folder().join("eye.toml");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("127.0.0.1:0", &listen)).unwrap();
    dead_letters(eye.folder(), &["replay", "--all"]).failed(&[&format!("no answer from http://{listen}/api/event/")]);
    assert_eq!(list(&eye).len(), 2);
    dead_letters(eye.folder(), &["delete", "transport/0.store"]).succeeded();
    assert_eq!(list(&eye).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_replay_keeps_the_letter_and_names_the_reason() {
    let store = Store::new(Kind::Sqlite);
    let mut large = refused();
    large["data"] = json!("x".repeat(2000));
    let mut eye = start_with_dead_letters(&store, &[large, refused()]).await;
    store.accept_again().await;
    block_in_place(|| eye.terminate(HANG));
    fs::write(eye.folder().join("eye.toml"), config(&store, &format!("{DISK}\nsources.web.max_event_bytes = 1000")))
        .unwrap();
    block_in_place(|| eye.restart());
    fs::write(letter_file(&eye, 5), "damaged").unwrap();
    replay(&eye, &["--all"]).failed(&["transport/0.store", "413", "at most 1000 bytes", "transport/5.store", "2 stay"]);
    let left = list(&eye);
    assert_eq!(left.iter().map(|letter| &letter["id"]).collect::<Vec<_>>(), ["transport/0.store", "transport/5.store"]);
    assert!(left[1]["reason"].as_str().unwrap().starts_with("damaged"));
    let shown = dead_letters(eye.folder(), &["show", "transport/5.store"]).succeeded();
    assert_eq!(shown[0]["payload_text"], "damaged");
}

const BUSY: &str = "503 Service Unavailable\r\nRetry-After: 0|{\"success\": false, \"detail\": \"no room\"}";

#[tokio::test(flavor = "multi_thread")]
async fn replay_retries_503_a_bounded_number_of_times() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("eye.toml"), config(&Store::new(Kind::Sqlite), DISK)).unwrap();
    let letters = folder.path().join("queue/dead-letters");
    fs::create_dir_all(&letters).unwrap();
    let names = [1, 2].map(|number| letters.join(format!("{number:020}.store.letter")));
    let replay_at = |url: &str| dead_letters(folder.path(), &["replay", "--all", "--url", url]);

    names.iter().for_each(|name| fs::write(name, "any").unwrap());
    let (url, requests) = answering(vec![BUSY, BUSY, "201 Created|{\"success\": true}"]);
    replay_at(&url).succeeded();
    assert_eq!(requests.try_iter().count(), 4, "two of them failed");
    assert!(names.iter().all(|name| !name.exists()));

    names.iter().for_each(|name| fs::write(name, "any").unwrap());
    let (url, requests) = answering(vec![BUSY]);
    replay_at(&url).failed(&["transport/1.store", "no room", "again later"]);
    assert_eq!(requests.try_iter().count(), 5, "the second letter was not sent");

    for (foreign_answer, expected) in [
        ("201 Created|hello", "hello"),
        ("200 OK|{\"success\": false, \"accepted\": 1}", "accepted"),
        ("200 OK|{\"success\": true}", "200"),
        ("405 Method Not Allowed|{}", "HTTP source"),
        ("502 Bad Gateway|", "502"),
    ] {
        let (url, _requests) = answering(vec![foreign_answer]);
        replay_at(&url).failed(&["transport/1.store", expected]);
        assert!(names.iter().all(|name| name.exists()), "{foreign_answer}");
    }

    // The target of a redirected POST gets a GET without the event.
    let (url, _requests) = answering(vec!["302 Found\r\nLocation: /elsewhere|", "201 Created|{\"success\": true}"]);
    replay_at(&url).failed(&["transport/1.store", "302"]);
    assert!(names[0].exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn list_ends_quietly_when_stdout_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("eye.toml"), config(&Store::new(Kind::Sqlite), DISK)).unwrap();
    let letters = folder.path().join("queue/dead-letters");
    fs::create_dir_all(&letters).unwrap();
    for number in 0..12_500 {
        fs::write(letters.join(format!("{number:020}.store.letter")), "x").unwrap();
    }
    let all = dead_letters(folder.path(), &["list"]).succeeded();
    let ids: Vec<_> = all.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, (0..12_500).map(|number| format!("transport/{number}.store")).collect::<Vec<_>>());

    let mut list = command(folder.path(), &["list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    let mut stdout = BufReader::new(list.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    drop(stdout);
    let done = CommandResult::of(list.wait_with_output().unwrap());
    assert_eq!((done.code, &*done.stderr), (Some(0), ""));

    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let done = CommandResult::of(command(folder.path(), &["list"]).stdout(full).output().unwrap());
    done.failed(&["cannot write to stdout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_without_a_store_is_empty_with_an_explanation() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new(Kind::Sqlite);
    fs::write(folder.path().join("eye.toml"), config(&store, "")).unwrap();
    let done = dead_letters(folder.path(), &["list"]);
    assert!(done.stderr.contains("producers are told"), "{}", done.stderr);
    assert_eq!(done.succeeded(), [] as [Value; 0]);
    dead_letters(folder.path(), &["show", "transport/1.store"]).failed(&["no such dead letter"]);

    fs::write(folder.path().join("eye.toml"), config(&store, DISK)).unwrap();
    let path = folder.path().join("queue");
    dead_letters(folder.path(), &["list"]).failed(&[path.to_str().unwrap(), "No such file"]);
    assert!(!path.exists(), "the command creates nothing");
    fs::write(folder.path().join("eye.toml"), "nonsense").unwrap();
    assert_eq!(dead_letters(folder.path(), &["list"]).code, Some(78));
}

#[test]
fn help_matches_the_snapshot() {
    let mut help = String::new();
    for command in [&[][..], &["list"], &["show"], &["replay"], &["delete"]] {
        let output = Command::new(program()).arg("dead-letters").args(command).arg("--help").output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        help += std::str::from_utf8(&output.stdout).unwrap();
        help += "\n";
    }
    insta::assert_snapshot!("help", help);
}
