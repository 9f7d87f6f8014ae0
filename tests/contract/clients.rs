//! Clients that are slow, leave, talk nonsense or listen to nothing.

use std::time::{Duration, Instant};

use crate::support::store::{Kind, Store};
use crate::support::{HANG, event, post, start_ready};
use eye_harness::{Eye, eventually};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use uuid::Uuid;

async fn connect(eye: &Eye) -> TcpStream {
    TcpStream::connect(eye.url("").trim_start_matches("http://")).await.unwrap()
}

async fn send(eye: &Eye, text: impl AsRef<[u8]>) -> TcpStream {
    let mut client = connect(eye).await;
    // A server that has heard enough may close before all is sent.
    let _ = client.write_all(text.as_ref()).await;
    client
}

/// All that comes until the connection ends.
async fn to_end(mut client: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = timeout(HANG, client.read_to_end(&mut bytes)).await.expect("it hangs");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn request(body: &str) -> String {
    format!(
        "POST /api/event/ HTTP/1.1\r\nHost: eye\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn headers_and_bodies_that_come_too_slowly_end_their_connection() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "server.idle_timeout_ms = 300\nsources.web.body_timeout_ms = 300").await;
    let whole = request(&event(Uuid::new_v4(), "slow").to_string());
    let head = whole.find("\r\n\r\n").unwrap() + 4;
    for (sent, status) in [(0, ""), (1, ""), (head - 1, ""), (head, "408"), (whole.len() - 1, "408")] {
        let started = Instant::now();
        let answer = to_end(send(&eye, &whole[..sent]).await).await;
        assert_eq!(answer.get(9..12).unwrap_or_default(), status, "after {sent} bytes: {answer}");
        assert!(started.elapsed() >= Duration::from_millis(300), "after {sent} bytes");
    }
    assert_eq!(store.ids().await, Vec::<Uuid>::new());
}

#[tokio::test]
async fn who_leaves_before_the_end_of_the_body_has_sent_nothing_and_who_leaves_after_it_has() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "").await;
    let half = request(&json!([event(Uuid::new_v4(), "half"), event(Uuid::new_v4(), "half")]).to_string());
    let chunked = half.replace("Content-Length", "Transfer-Encoding: chunked\r\nX");
    for sent in [half.as_str(), &chunked] {
        drop(send(&eye, &sent[..sent.len() - 1]).await);
    }
    let wanted = Uuid::new_v4();
    // The locked database keeps the answer back, so that the client is gone before it.
    let lock = store.lock().await;
    drop(send(&eye, request(&event(wanted, "whole").to_string())).await);
    // Served after it.
    assert_eq!(eye.get("/livez").await.0, 200);
    lock.release().await;
    eventually("it is stored", HANG, async || store.ids().await == [wanted]).await;
    assert_eq!(post(&eye, &event(Uuid::new_v4(), "next")).await.0, 201);
    assert_eq!(store.ids().await.len(), 2);
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_to_go_on_unless_the_body_is_too_large() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "").await;
    let asking = request(&event(Uuid::new_v4(), "asked").to_string())
        .replace("\r\n\r\n", "\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
    let (head, body) = asking.split_at(asking.find("\r\n\r\n").unwrap() + 4);
    let mut client = send(&eye, head).await;
    let mut answer = vec![0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    timeout(HANG, client.read_exact(&mut answer)).await.expect("it hangs").unwrap();
    assert_eq!(answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(body.as_bytes()).await.unwrap();
    assert!(to_end(client).await.starts_with("HTTP/1.1 201 "));
    let large = head.replace("Content-Length: ", "Content-Length: 1000000");
    assert!(to_end(send(&eye, large).await).await.starts_with("HTTP/1.1 413 "));
    let unknown = head.replace("application/json", "text/html");
    assert!(to_end(send(&eye, unknown).await).await.starts_with("HTTP/1.1 415 "));
}

#[tokio::test]
async fn silent_connections_up_to_the_bound_do_not_keep_a_healthy_client_out() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "server.max_connections = 8\nserver.idle_timeout_ms = 500").await;
    let mut silent = Vec::new();
    for sent in ["", "GET"].into_iter().cycle().take(24) {
        silent.push(send(&eye, sent).await);
    }
    // Another connection than the one that is kept from before.
    let answer = send(&eye, "GET /livez HTTP/1.1\r\nHost: eye\r\nConnection: close\r\n\r\n").await;
    assert!(to_end(answer).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_client_that_never_takes_its_answer_does_not_keep_others_out() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "server.max_connections = 1\nserver.idle_timeout_ms = 500").await;
    let mut large = event(Uuid::nil(), "large");
    large["data"] = json!("x".repeat(1_000_000));
    for _ in 0..32 {
        large["id"] = json!(Uuid::new_v4());
        assert_eq!(post(&eye, &large).await.0, 201);
    }
    // Between them, the systems' buffers hold less than the answer.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = socket.connect(eye.url("").trim_start_matches("http://").parse().unwrap()).await.unwrap();
    deaf.write_all(b"GET /api/event/ HTTP/1.1\r\nHost: eye\r\n\r\n").await.unwrap();
    deaf.readable().await.unwrap();
    let healthy = send(&eye, "GET /livez HTTP/1.1\r\nHost: eye\r\nConnection: close\r\n\r\n").await;
    assert!(to_end(healthy).await.starts_with("HTTP/1.1 200 "));
    let received = to_end(deaf).await;
    assert!(received.starts_with("HTTP/1.1 200 ") && received.len() < 32_000_000, "cut off: {}", received.len());
}

#[tokio::test]
async fn what_is_no_http_is_400_or_the_end_and_harms_nobody() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "").await;
    let body = event(Uuid::new_v4(), "smuggled").to_string();
    let good = request(&body);
    let long = format!("GET /{} HTTP/1.1\r\nHost: eye\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let nonsense: Vec<Vec<u8>> = vec![
        b"\r\n\r\n\r\n".repeat(100),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), // the start of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"G\0T / HTTP/1.1\r\n\r\n".to_vec(),
        b"GET  HTTP/1.1\r\n\r\n".to_vec(),
        b"\xff\xfe\xfd".repeat(10_000),
        long.into_bytes(),
        many.into_bytes(),
        good.replace("Content-Length: ", "Content-Length: -").into_bytes(),
        good.replace("Content-Length: ", "Content-Length: 99999999999999999999").into_bytes(),
        good.replace("Content-Length", "Content-Length: 5\r\nContent-Length").into_bytes(),
        good.replace("Host: eye", "Transfer-Encoding: chunked, chunked").into_bytes(),
        good.replace("Content-Length: ", "Transfer-Encoding: chunked\r\nX: ").replace(&body, "zz\r\n{}").into_bytes(),
        good.replace("Content-Length: ", "Transfer-Encoding: chunked\r\nX: ")
            .replace(&body, "fffffffffffffffffff\r\n{}")
            .into_bytes(),
    ];
    for bytes in nonsense {
        let mut client = send(&eye, &bytes).await;
        let _ = client.shutdown().await;
        let answer = to_end(client).await;
        let status = answer.get(9..12).unwrap_or_default();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        assert!(["", "400", "413", "414", "431", "505"].contains(&status), "{shown}: {answer}");
    }
    assert_eq!(store.ids().await, Vec::<Uuid>::new());
    assert_eq!(post(&eye, &event(Uuid::new_v4(), "good")).await.0, 201);
    assert!(!eye.logs().contains("panicked"), "{}", eye.logs());
    assert!(!eye.logs().contains("\"ERROR\""), "{}", eye.logs());
}
