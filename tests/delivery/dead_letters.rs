//! `eye dead-letters` beside the running program, and without it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::support::store::{ALL, Kind, Store};
use crate::support::{HANG, PROGRAM, config, event, start_ready};
use eye_harness::{Eye, eventually};
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

const DISK: &str = "transport.type = \"disk\"\ntransport.path = \"queue\"";

/// How it ended, what it printed, and what it logged.
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Done {
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
    fn failed(self, says: &[&str]) -> String {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        assert!(says.iter().all(|text| self.stderr.contains(text)), "{says:?}: {}", self.stderr);
        self.stdout
    }
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("dead-letters").args(arguments).args(["--config", "eye.toml"]).current_dir(folder);
    command.env_remove("EYE_CONFIG").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn dead_letters(folder: &Path, arguments: &[&str]) -> Done {
    Done::of(block_in_place(|| command(folder, arguments).output().unwrap()))
}

fn list(eye: &Eye) -> Vec<Value> {
    dead_letters(eye.folder(), &["list"]).succeeded()
}

fn replay(eye: &Eye, which: &[&str]) -> Done {
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

/// The program with a dead letter of each of these events, which the database refuses until it is told otherwise.
async fn with_refused(store: &Store, events: &[Value]) -> Eye {
    let eye = start_ready(store, DISK).await;
    eventually("the table is there", HANG, async || eye.get("/api/event/").await.0 == 200).await;
    store.refuse().await;
    assert_eq!(eye.post(json!(events)).await.0, 201);
    until_listed(&eye, events.len()).await;
    eye
}

fn refused() -> Value {
    event(Uuid::new_v4(), "refused")
}

fn letter_file(eye: &Eye, number: usize) -> PathBuf {
    eye.folder().join(format!("queue/dead-letters/{number:020}.store.letter"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_is_seen_and_once_the_reason_is_gone_it_is_stored_once() {
    for kind in ALL {
        let store = Store::new(kind);
        let eye = start_ready(&store, DISK).await;
        eventually("the table is there", HANG, async || eye.get("/api/event/").await.0 == 200).await;
        store.refuse().await;
        let (good, bad) = (Uuid::new_v4(), Uuid::new_v4());
        let mut sent = event(bad, "refused").to_string();
        sent = sent.replace(r#"{"n":1}"#, r#"{"z":12345678901234567890,"a":[1.10,"é\n"]}"#);
        assert_eq!(eye.post(format!("[{},{sent}]", event(good, "good"))).await.0, 201);

        let letters = until_listed(&eye, 1).await;
        assert!(eye.logs().contains("`eye dead-letters list` shows them"), "{}", eye.logs());
        let letter = &letters[0];
        assert_eq!((&letter["id"], &letter["refused_by"]), (&json!("transport/1.store"), &json!("sinks.store")));
        let recognised = ["session_id", "category", "name", "timestamp"].map(|field| &letter[field]);
        assert_eq!(recognised, ["s", "test", "refused", "2021-01-01T09:15:27.243860Z"], "{kind:?}");
        assert!(letter["reason"].as_str().unwrap().contains("no"), "{letter}");
        let shown = dead_letters(eye.folder(), &["show", "transport/1.store"]);
        assert!(shown.stdout.contains(r#""data":{"z":12345678901234567890,"a":[1.10,"é\n"]}"#), "{}", shown.stdout);
        let shown = shown.succeeded();
        assert_eq!((shown.len(), &shown[0]["payload"]["id"]), (1, &json!(bad)));
        assert_eq!(["id", "time", "refused_by", "reason"].map(|field| &shown[0][field]), {
            ["id", "time", "refused_by", "reason"].map(|field| &letter[field])
        });

        // Too early: it is taken, refused again, and comes back as another one.
        replay(&eye, &["--all"]).succeeded();
        eventually("another one", HANG, async || {
            let letters = list(&eye);
            letters.len() == 1 && letters[0]["id"] == "transport/2.store"
        })
        .await;

        store.refuse_no_more().await;
        replay(&eye, &["transport/2.store"]).succeeded();
        assert_eq!(list(&eye), [] as [Value; 0]);
        let ids = async || {
            let mut ids = store.ids().await;
            ids.sort();
            ids
        };
        let mut both = [good, bad];
        both.sort();
        eventually("both are stored once", HANG, async || ids().await == both).await;
        replay(&eye, &["transport/2.store"]).failed(&["no such dead letter", "transport/2.store"]);
        replay(&eye, &["--all"]).succeeded();
        assert_eq!(ids().await, both, "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_replayed_before_a_crash_is_not_stored_twice() {
    let store = Store::new(Kind::Sqlite);
    let eye = with_refused(&store, &[refused()]).await;
    store.refuse_no_more().await;
    let letter = fs::read(letter_file(&eye, 0)).unwrap();
    for _ in 0..2 {
        // As when the command is killed after it has sent it.
        fs::write(letter_file(&eye, 0), &letter).unwrap();
        replay(&eye, &["--all"]).succeeded();
    }
    // What comes later is stored later: there is nothing left to wait for.
    let last = Uuid::new_v4();
    assert_eq!(eye.post(event(last, "last")).await.0, 201);
    eventually("all is stored", HANG, async || store.ids().await.contains(&last)).await;
    assert_eq!(store.ids().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_may_replay_at_once() {
    let store = Store::new(Kind::Sqlite);
    let events: Vec<Value> = (0..20).map(|_| refused()).collect();
    let eye = with_refused(&store, &events).await;
    store.refuse_no_more().await;
    let both = thread::scope(|scope| [(); 2].map(|()| scope.spawn(|| replay(&eye, &["--all"]))).map(|it| it.join()));
    both.into_iter().for_each(|done| drop(done.unwrap().succeeded()));
    assert_eq!(list(&eye), [] as [Value; 0]);
    let last = Uuid::new_v4();
    assert_eq!(eye.post(event(last, "last")).await.0, 201);
    eventually("all is stored", HANG, async || store.ids().await.contains(&last)).await;
    assert_eq!(store.ids().await.len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_those_that_were_there_at_the_start() {
    let store = Store::new(Kind::Sqlite);
    let eye = with_refused(&store, &[refused()]).await;
    let later = letter_file(&eye, 7);
    fs::write(&later, "damaged, so that its time is the file's").unwrap();
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
async fn ids_that_are_not_there_are_named_and_the_others_are_done() {
    let store = Store::new(Kind::Sqlite);
    let eye = with_refused(&store, &[refused(), refused(), refused()]).await;
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
async fn without_the_program_all_but_replay_works() {
    let store = Store::new(Kind::Sqlite);
    let mut eye = with_refused(&store, &[refused(), refused()]).await;
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
async fn what_the_program_does_not_take_stays_and_the_reason_is_told() {
    let store = Store::new(Kind::Sqlite);
    let mut large = refused();
    large["data"] = json!("x".repeat(2000));
    let mut eye = with_refused(&store, &[large, refused()]).await;
    store.refuse_no_more().await;
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

/// Answers each request with the next of these, the last one again and again; the number of requests so far.
fn stand_in(answers: Vec<&'static str>) -> (String, mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::channel();
    thread::spawn(move || {
        for number in 0.. {
            let (stream, _) = listener.accept().unwrap();
            if sender.send(()).is_err() {
                return;
            }
            answer(stream, answers[number.min(answers.len() - 1)]);
        }
    });
    (url, requests)
}

fn answer(mut stream: TcpStream, answer: &str) {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    lines.read_exact(&mut vec![0; length]).unwrap();
    let (head, body) = answer.split_once('|').unwrap();
    let length = body.len();
    write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
}

const BUSY: &str = "503 Service Unavailable\r\nRetry-After: 0|{\"success\": false, \"detail\": \"no room\"}";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_without_room_is_asked_again_but_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("eye.toml"), config(&Store::new(Kind::Sqlite), DISK)).unwrap();
    let letters = folder.path().join("queue/dead-letters");
    fs::create_dir_all(&letters).unwrap();
    let names = [1, 2].map(|number| letters.join(format!("{number:020}.store.letter")));
    let replay_at = |url: &str| dead_letters(folder.path(), &["replay", "--all", "--url", url]);

    names.iter().for_each(|name| fs::write(name, "any").unwrap());
    let (url, requests) = stand_in(vec![BUSY, BUSY, "201 Created|{\"success\": true}"]);
    replay_at(&url).succeeded();
    assert_eq!(requests.try_iter().count(), 4, "two of them in vain");
    assert!(names.iter().all(|name| !name.exists()));

    names.iter().for_each(|name| fs::write(name, "any").unwrap());
    let (url, requests) = stand_in(vec![BUSY]);
    replay_at(&url).failed(&["transport/1.store", "no room", "again later"]);
    assert_eq!(requests.try_iter().count(), 5, "and the second one was not tried");

    for (somebody_else, told) in [
        ("201 Created|hello", "hello"),
        ("200 OK|{\"success\": false, \"accepted\": 1}", "accepted"),
        ("200 OK|{\"success\": true}", "200"),
        ("405 Method Not Allowed|{}", "HTTP source"),
        ("502 Bad Gateway|", "502"),
    ] {
        let (url, _requests) = stand_in(vec![somebody_else]);
        replay_at(&url).failed(&["transport/1.store", told]);
        assert!(names.iter().all(|name| name.exists()), "{somebody_else}");
    }

    // What answers a redirected POST was asked with GET, and knows nothing of the event.
    let (url, _requests) = stand_in(vec!["302 Found\r\nLocation: /elsewhere|", "201 Created|{\"success\": true}"]);
    replay_at(&url).failed(&["transport/1.store", "302"]);
    assert!(names[0].exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_ends_quietly_when_nobody_reads_on() {
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
    let done = Done::of(list.wait_with_output().unwrap());
    assert_eq!((done.code, &*done.stderr), (Some(0), ""));

    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let done = Done::of(command(folder.path(), &["list"]).stdout(full).output().unwrap());
    done.failed(&["cannot write to stdout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_keeps_them_there_are_none_and_it_is_said() {
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
    assert!(!path.exists(), "it makes nothing");
    fs::write(folder.path().join("eye.toml"), "nonsense").unwrap();
    assert_eq!(dead_letters(folder.path(), &["list"]).code, Some(78));
}

/// The command lines that the help shows are those that there are.
#[test]
fn help() {
    let mut help = String::new();
    for command in [&[][..], &["list"], &["show"], &["replay"], &["delete"]] {
        let output = Command::new(PROGRAM).arg("dead-letters").args(command).arg("--help").output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        help += std::str::from_utf8(&output.stdout).unwrap();
        help += "\n";
    }
    insta::assert_snapshot!(help);
}
