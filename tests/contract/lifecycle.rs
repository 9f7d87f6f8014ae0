//! Startup and shutdown: signals, deadlines, and hanging databases or clients.

use std::time::{Duration, Instant};

use eye_harness::{Eye, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, block_in_place};

use crate::support::load::ClientLoad;
use crate::support::store::{ALL, Kind, SERVERS, Store};
use crate::support::{HANG, new_event, signal, start, start_ready};

#[tokio::test(flavor = "multi_thread")]
async fn stop_under_load_finishes_accepted_events() {
    for kind in ALL {
        for name in ["TERM", "INT"] {
            let store = Store::new(kind);
            let mut eye = start_ready(&store, "shutdown_timeout_s = 20").await;
            let load = ClientLoad::start(&eye);
            load.progress(100).await;
            signal(&eye, name);
            assert_eq!(block_in_place(|| eye.wait_end(Duration::from_secs(20))), Some(0), "{kind:?} {name}");
            let logs = eye.logs();
            assert!(logs.contains(&format!("SIG{name}")) && logs.contains("\"stopped\""), "{kind:?}: {logs}");
            assert!(logs.lines().count() < 10, "the log has no line for each event:\n{logs}");
            load.finish(&store).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_database_delays_shutdown_to_its_deadline() {
    let store = Store::new(Kind::Postgres);
    let mut eye = start_ready(&store, "shutdown_timeout_s = 2").await;
    let _lock = store.lock().await;
    let waiting = post_and_hang(&eye, &store).await;
    let asked = Instant::now();
    assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(1));
    let took = asked.elapsed();
    assert!((2000..10_000).contains(&took.as_millis()), "{took:?}");
    let logs = eye.logs();
    assert!(logs.contains("not stopped within shutdown_timeout_s = 2"), "{logs}");
    let answer = waiting.await.unwrap();
    assert!(answer.is_err() || answer.unwrap().status() == 503, "the event is not acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn second_signal_exits_at_once() {
    let store = Store::new(Kind::Postgres);
    let mut eye = start_ready(&store, "shutdown_timeout_s = 60").await;
    let _lock = store.lock().await;
    let waiting = post_and_hang(&eye, &store).await;
    signal(&eye, "TERM");
    eventually("the program is stopping", HANG, async || eye.logs().contains("stopping")).await;
    assert_eq!(block_in_place(|| eye.wait_end(Duration::from_millis(200))), None, "the program waits for the database");
    let asked = Instant::now();
    assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(1));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(eye.logs().contains("exiting at once"), "{}", eye.logs());
    assert!(waiting.await.unwrap().is_err(), "the event is not acknowledged");
}

/// Sends an event and returns when its insert waits for the locked `store`.
async fn post_and_hang(eye: &Eye, store: &Store) -> JoinHandle<reqwest::Result<reqwest::Response>> {
    let waiting = tokio::spawn(eye.client().post(eye.url("/api/event/")).json(&new_event("lost")).send());
    let blocked = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the insert waits", HANG, async || !store.sql(blocked).await.is_empty()).await;
    waiting
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_do_not_delay_shutdown() {
    let store = Store::new(Kind::Sqlite);
    let mut eye = start_ready(&store, "shutdown_timeout_s = 4").await;
    let address = eye.url("").trim_start_matches("http://").to_owned();
    let mut clients = Vec::new();
    let head = "POST /api/event/ HTTP/1.1\r\nHost: eye\r\nContent-Type: application/json\r\nContent-Length: 100\r\n";
    for sent in ["", "POST /api/ev", head, &format!("{head}\r\n"), &format!("{head}\r\n[{{")] {
        let mut client = TcpStream::connect(&address).await.unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        clients.push(client);
    }
    // Connections are accepted in order, so all clients above are connected.
    assert_eq!(eye.get("/livez").await.0, 200);
    assert_eq!(block_in_place(|| eye.terminate(HANG)), Some(0), "{}", eye.logs());
    for mut client in clients {
        let mut answer = String::new();
        // A reset also ends the connection.
        let _ = client.read_to_string(&mut answer).await;
        assert!(!answer.contains(" 201 ") && !answer.contains(" 400 "), "{answer}");
    }
    assert_eq!(store.ids().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_without_backlog_ignores_a_hanging_database() {
    for kind in SERVERS {
        let store = Store::own(kind);
        for moment in ["before the start", "while idle"] {
            if moment == "before the start" {
                block_in_place(|| store.server().pause());
            }
            let mut eye = start(&store, "");
            if moment != "before the start" {
                eye.wait_ready().await;
                assert_eq!(eye.get("/api/event/").await.0, 200);
                block_in_place(|| store.server().pause());
            }
            let ended = block_in_place(|| eye.terminate(HANG));
            assert_eq!(ended, Some(0), "{kind:?} {moment}: {}", eye.logs());
            block_in_place(|| store.server().resume());
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn program_uses_no_huge_pages() {
    let eye = start_ready(&Store::new(Kind::Sqlite), "").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", eye.pid())).unwrap();
    assert!(status.contains("THP_enabled:\t0"), "{status}");
}
