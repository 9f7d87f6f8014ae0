//! Misbehaving clients: slow ones, those that disconnect early, and those that send invalid HTTP.

use std::time::{Duration, Instant};

use eye_harness::{Eye, eventually};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::store::{Kind, Store};
use crate::support::{HANG, event, new_event, post, start_ready};

async fn connect(eye: &Eye) -> TcpStream {
    TcpStream::connect(eye.url("").trim_start_matches("http://")).await.unwrap()
}

async fn send(eye: &Eye, text: impl AsRef<[u8]>) -> TcpStream {
    let mut client = connect(eye).await;
    // The server may close the connection before all is sent.
    let _ = client.write_all(text.as_ref()).await;
    client
}

/// Reads until the connection ends.
async fn to_end(mut client: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset also ends the connection.
    let _ = timeout(HANG, client.read_to_end(&mut bytes)).await.expect("the server answers in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn request(body: &str) -> String {
    format!(
        "POST /api/event/ HTTP/1.1\r\nHost: eye\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn slow_headers_and_bodies_end_their_connection() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "server.idle_timeout_ms = 300\nsources.web.body_timeout_ms = 300").await;
    let whole = request(&new_event("slow").to_string());
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
async fn only_complete_bodies_of_lost_clients_are_stored() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "").await;
    let half = request(&json!([new_event("half"), new_event("half")]).to_string());
    let chunked = half.replace("Content-Length", "Transfer-Encoding: chunked\r\nX");
    for sent in [half.as_str(), &chunked] {
        drop(send(&eye, &sent[..sent.len() - 1]).await);
    }
    let wanted = Uuid::new_v4();
    // The locked database delays the answer until the client has disconnected.
    let lock = store.lock().await;
    drop(send(&eye, request(&event(wanted, "whole").to_string())).await);
    // Connections are accepted in order.
    assert_eq!(eye.get("/livez").await.0, 200);
    lock.release().await;
    eventually("the event is stored", HANG, async || store.ids().await == [wanted]).await;
    assert_eq!(post(&eye, &new_event("next")).await.0, 201);
    assert_eq!(store.ids().await.len(), 2);
}

#[tokio::test]
async fn expect_continue_is_answered_unless_the_body_is_refused() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "").await;
    let asking = request(&new_event("asked").to_string())
        .replace("\r\n\r\n", "\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
    let (head, body) = asking.split_at(asking.find("\r\n\r\n").unwrap() + 4);
    let mut client = send(&eye, head).await;
    let mut answer = vec![0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    timeout(HANG, client.read_exact(&mut answer)).await.expect("the server answers in time").unwrap();
    assert_eq!(answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(body.as_bytes()).await.unwrap();
    assert!(to_end(client).await.starts_with("HTTP/1.1 201 "));
    let large = head.replace("Content-Length: ", "Content-Length: 1000000");
    assert!(to_end(send(&eye, large).await).await.starts_with("HTTP/1.1 413 "));
    let unknown = head.replace("application/json", "text/html");
    assert!(to_end(send(&eye, unknown).await).await.starts_with("HTTP/1.1 415 "));
}

#[tokio::test]
async fn silent_connections_do_not_block_healthy_clients() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "server.max_connections = 8\nserver.idle_timeout_ms = 500").await;
    let mut silent = Vec::new();
    for sent in ["", "GET"].into_iter().cycle().take(24) {
        silent.push(send(&eye, sent).await);
    }
    // This needs a new connection.
    let answer = send(&eye, "GET /livez HTTP/1.1\r\nHost: eye\r\nConnection: close\r\n\r\n").await;
    assert!(to_end(answer).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn client_that_never_reads_does_not_block_others() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "server.max_connections = 1\nserver.idle_timeout_ms = 500").await;
    let mut large = event(Uuid::nil(), "large");
    large["data"] = json!("x".repeat(1_000_000));
    for _ in 0..32 {
        large["id"] = json!(Uuid::new_v4());
        assert_eq!(post(&eye, &large).await.0, 201);
    }
    // The socket buffers of both sides are smaller than the answer.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stalled = socket.connect(eye.url("").trim_start_matches("http://").parse().unwrap()).await.unwrap();
    stalled.write_all(b"GET /api/event/ HTTP/1.1\r\nHost: eye\r\n\r\n").await.unwrap();
    stalled.readable().await.unwrap();
    let healthy = send(&eye, "GET /livez HTTP/1.1\r\nHost: eye\r\nConnection: close\r\n\r\n").await;
    assert!(to_end(healthy).await.starts_with("HTTP/1.1 200 "));
    let received = to_end(stalled).await;
    assert!(received.starts_with("HTTP/1.1 200 ") && received.len() < 32_000_000, "cut off: {}", received.len());
}

#[tokio::test]
async fn invalid_http_is_rejected_and_harms_no_other_client() {
    let store = Store::new(Kind::Sqlite);
    let eye = start_ready(&store, "").await;
    let body = new_event("smuggled").to_string();
    let good = request(&body);
    let long = format!("GET /{} HTTP/1.1\r\nHost: eye\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let invalid: Vec<Vec<u8>> = vec![
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
    for bytes in invalid {
        let mut client = send(&eye, &bytes).await;
        let _ = client.shutdown().await;
        let answer = to_end(client).await;
        let status = answer.get(9..12).unwrap_or_default();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        assert!(["", "400", "413", "414", "431", "505"].contains(&status), "{shown}: {answer}");
    }
    assert_eq!(store.ids().await, Vec::<Uuid>::new());
    assert_eq!(post(&eye, &new_event("good")).await.0, 201);
    assert!(!eye.logs().contains("panicked"), "{}", eye.logs());
    assert!(!eye.logs().contains("\"ERROR\""), "{}", eye.logs());
}
