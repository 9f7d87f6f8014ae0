//! One request on its way, and what its answer means for each of its events.

use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream;
use async_nats::jetstream::context::Context;
use async_nats::jetstream::message::PublishMessage;
use fastrand::Rng;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::event::REFUSED;
use crate::ledger::Fate;
use crate::load::Request;

/// Longer than the program lets a request wait.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A server that is there answers sooner.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends requests: to `http://…` as a POST, to `nats://HOST:PORT/SUBJECT` as a message to the stream that has the
/// subject.
#[derive(Debug)]
pub(crate) struct Sender {
    http: reqwest::Client,
    /// To the server that was asked for first.
    nats: OnceCell<Context>,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The HTTP status; `stream` for a message that its stream has taken; else `none`.
    pub(crate) status: String,
    /// One for each event.
    pub(crate) fates: Vec<Fate>,
    /// Why nobody should get such an answer.
    pub(crate) unexpected: Option<String>,
}

impl Default for Sender {
    fn default() -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build();
        Self { http: http.expect("the client needs nothing"), nats: OnceCell::new() }
    }
}

impl Sender {
    /// Sends all, and waits for the answer.
    pub(crate) async fn send(&self, url: &str, request: &Request) -> Answer {
        if let Some((server, subject)) = url.strip_prefix("nats://").and_then(|place| place.split_once('/')) {
            return self.publish(server, subject, request).await;
        }
        let post = self.http.post(url).header(CONTENT_TYPE, "application/json").body(request.body.clone());
        let Ok(answer) = post.send().await else { return Answer::none(request) };
        let (status, retry_after) = (answer.status().as_u16(), answer.headers().contains_key(RETRY_AFTER));
        let Ok(body) = answer.bytes().await else { return Answer::none(request) };
        Answer::read(request, status, retry_after, &body)
    }

    /// The stream has custody once it says so. That it has the message already says the same.
    async fn publish(&self, server: &str, subject: &str, request: &Request) -> Answer {
        let context = async || {
            let options = ConnectOptions::new().retry_on_initial_connect();
            let mut context = jetstream::new(options.connect(server).await?);
            context.set_timeout(PUBLISH_TIMEOUT);
            Ok::<_, async_nats::ConnectError>(context)
        };
        let Ok(context) = self.nats.get_or_try_init(context).await else { return Answer::none(request) };
        let message = PublishMessage::build().message_id(request.rows[0].id.to_string());
        let message = message.payload(request.body.clone().into());
        let Ok(taken) = context.send_publish(subject.to_owned(), message).await else { return Answer::none(request) };
        match taken.await {
            Ok(_) => {
                Answer { status: "stream".to_owned(), fates: vec![Fate::Acked; request.rows.len()], unexpected: None }
            }
            Err(_) => Answer::none(request),
        }
    }

    /// Sends as much as chance will have, and leaves, in one way or another. Whether anything was sent.
    pub(crate) async fn leave(&self, url: &str, request: &Request, rng: &mut Rng) -> bool {
        let address = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let Ok(mut connection) = TcpStream::connect(address).await else { return false };
        let head = format!(
            "POST /api/event/ HTTP/1.1\r\nHost: eye\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            request.body.len()
        );
        let whole = head.clone() + &request.body;
        let part = match rng.u8(..3) {
            0 => rng.usize(1..head.len()),
            1 => rng.usize(head.len()..whole.len()),
            _ => whole.len(),
        };
        let sent = connection.write_all(&whole.as_bytes()[..part]).await.is_ok();
        sleep(Duration::from_micros(rng.u64(..3000))).await;
        if rng.bool() {
            // A reset instead of an orderly end.
            let _ = connection.set_zero_linger();
        }
        sent
    }
}

impl Answer {
    fn none(request: &Request) -> Self {
        Self { status: "none".to_owned(), fates: vec![Fate::Unknown; request.rows.len()], unexpected: None }
    }

    fn read(request: &Request, status: u16, retry_after: bool, body: &[u8]) -> Self {
        let fates = fates(request, status, retry_after, &serde_json::from_slice(body).unwrap_or_default());
        let unexpected = fates.is_none().then(|| format!("{status}: {}", String::from_utf8_lossy(body)));
        let fates = fates.unwrap_or_else(|| vec![Fate::Unknown; request.rows.len()]);
        Self { status: status.to_string(), fates, unexpected }
    }
}

/// What an answer means; `None` for one that nobody should get.
fn fates(request: &Request, status: u16, retry_after: bool, body: &Value) -> Option<Vec<Fate>> {
    let events = request.rows.len();
    let all = |fate| Some(vec![fate; events]);
    let is_refused = |index: usize| request.rows.get(index).is_some_and(|row| row.name == REFUSED);
    match status {
        201 if body["success"] == true && (events == 1 || body["accepted"] == events) => all(Fate::Acked),
        200 => {
            let mut fates = vec![Fate::Acked; events];
            for rejected in body["rejected"].as_array()? {
                let index = usize::try_from(rejected["index"].as_u64()?).ok().filter(|index| is_refused(*index))?;
                fates[index] = Fate::Refused;
            }
            let accepted = fates.iter().filter(|fate| **fate == Fate::Acked).count();
            (body["accepted"] == accepted && accepted < events).then_some(fates)
        }
        422 if (0..events).all(is_refused) => all(Fate::Refused),
        503 if retry_after => all(Fate::Unknown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::Row;

    #[test]
    fn an_answer_means_what_the_contract_says_and_others_are_unexpected() {
        let mut rng = Rng::with_seed(1);
        let request = |names: [Option<&str>; 2], rng: &mut Rng| Request {
            rows: names.map(|name| Row::random(rng, name)).to_vec(),
            body: String::new(),
        };
        let good = request([None, None], &mut rng);
        let mixed = request([None, Some(REFUSED)], &mut rng);
        let bad = request([Some(REFUSED); 2], &mut rng);
        let (unknown, refused, acked) = (Fate::Unknown, Fate::Refused, Fate::Acked);
        let one = |index: u64| json!({"success": false, "accepted": 1, "rejected": [{"index": index, "errors": {}}]});
        for (request, status, retry_after, body, expected) in [
            (&good, 201, false, json!({"success": true, "accepted": 2}), Some([acked; 2])),
            (&good, 201, false, json!({"success": true, "accepted": 1}), None),
            (&good, 201, false, json!({"success": false, "accepted": 2}), None),
            (&mixed, 200, false, one(1), Some([acked, refused])),
            (&mixed, 200, false, one(0), None),
            (&mixed, 200, false, one(2), None),
            (&mixed, 200, false, json!({"success": false, "accepted": 2, "rejected": []}), None),
            (&bad, 422, false, json!({}), Some([refused; 2])),
            (&mixed, 422, false, json!({}), None),
            (&good, 400, false, json!({}), None),
            (&good, 500, false, json!({}), None),
            (&good, 503, true, json!({}), Some([unknown; 2])),
            (&good, 503, false, json!({}), None),
        ] {
            let fates = fates(request, status, retry_after, &body);
            assert_eq!(fates, expected.map(|fates| fates.to_vec()), "{status} {body}");
        }
    }
}
