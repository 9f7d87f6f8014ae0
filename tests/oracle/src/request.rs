//! The send of one request, and the outcome of each of its events: [`RequestSender`].

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
use crate::ledger::ReportedOutcome;
use crate::load::EventRequest;

/// The time limit for an answer, longer than any wait of the program.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for the acknowledgement of a stream, which a healthy server never needs.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(2);

/// A client that sends requests: to `http://…` as a POST, to `nats://HOST:PORT/SUBJECT` as a message to the stream of
/// the subject.
#[derive(Debug)]
pub(crate) struct RequestSender {
    http: reqwest::Client,
    /// The connection to the first server.
    nats: OnceCell<Context>,
}

/// The result of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestResult {
    /// The HTTP status; `stream` for a message that the stream acknowledged; else `none`.
    pub(crate) status: String,
    /// The outcome of each event.
    pub(crate) outcomes: Vec<ReportedOutcome>,
    /// The answer, if it violates the contract.
    pub(crate) unexpected: Option<String>,
}

impl Default for RequestSender {
    fn default() -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build();
        Self { http: http.expect("the client has valid options"), nats: OnceCell::new() }
    }
}

impl RequestSender {
    /// Sends a request and waits for the answer.
    pub(crate) async fn send(&self, url: &str, request: &EventRequest) -> RequestResult {
        if let Some((server, subject)) = url.strip_prefix("nats://").and_then(|rest| rest.split_once('/')) {
            return self.publish(server, subject, request).await;
        }
        let post = self.http.post(url).header(CONTENT_TYPE, "application/json").body(request.body.clone());
        let Ok(answer) = post.send().await else { return RequestResult::none(request) };
        let (status, retry_after) = (answer.status().as_u16(), answer.headers().contains_key(RETRY_AFTER));
        let Ok(body) = answer.bytes().await else { return RequestResult::none(request) };
        RequestResult::read(request, status, retry_after, &body)
    }

    /// Publishes a request. An acknowledgement, also of a duplicate, means that the stream has custody.
    async fn publish(&self, server: &str, subject: &str, request: &EventRequest) -> RequestResult {
        let context = async || {
            let options = ConnectOptions::new().retry_on_initial_connect();
            let mut context = jetstream::new(options.connect(server).await?);
            context.set_timeout(PUBLISH_TIMEOUT);
            Ok::<_, async_nats::ConnectError>(context)
        };
        let Ok(context) = self.nats.get_or_try_init(context).await else { return RequestResult::none(request) };
        let message = PublishMessage::build().message_id(request.rows[0].id.to_string());
        let message = message.payload(request.body.clone().into());
        let Ok(ack) = context.send_publish(subject.to_owned(), message).await else {
            return RequestResult::none(request);
        };
        match ack.await {
            Ok(_) => RequestResult {
                status: "stream".to_owned(),
                outcomes: vec![ReportedOutcome::Acked; request.rows.len()],
                unexpected: None,
            },
            Err(_) => RequestResult::none(request),
        }
    }

    /// Sends a random part of the request and disconnects with a FIN or a reset. Returns true if anything was sent.
    pub(crate) async fn send_and_disconnect(&self, url: &str, request: &EventRequest, rng: &mut Rng) -> bool {
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
            // The close sends a reset instead of a FIN.
            let _ = connection.set_zero_linger();
        }
        sent
    }
}

impl RequestResult {
    fn none(request: &EventRequest) -> Self {
        Self {
            status: "none".to_owned(),
            outcomes: vec![ReportedOutcome::Unknown; request.rows.len()],
            unexpected: None,
        }
    }

    fn read(request: &EventRequest, status: u16, retry_after: bool, body: &[u8]) -> Self {
        let outcomes = outcomes(request, status, retry_after, &serde_json::from_slice(body).unwrap_or_default());
        let unexpected = outcomes.is_none().then(|| format!("{status}: {}", String::from_utf8_lossy(body)));
        let outcomes = outcomes.unwrap_or_else(|| vec![ReportedOutcome::Unknown; request.rows.len()]);
        Self { status: status.to_string(), outcomes, unexpected }
    }
}

/// Returns the outcome of each event, or `None` if the answer violates the contract.
fn outcomes(request: &EventRequest, status: u16, retry_after: bool, body: &Value) -> Option<Vec<ReportedOutcome>> {
    let events = request.rows.len();
    let all = |outcome| Some(vec![outcome; events]);
    let is_refused = |index: usize| request.rows.get(index).is_some_and(|row| row.name == REFUSED);
    match status {
        201 if body["success"] == true && (events == 1 || body["accepted"] == events) => all(ReportedOutcome::Acked),
        200 => {
            let mut outcomes = vec![ReportedOutcome::Acked; events];
            for rejected in body["rejected"].as_array()? {
                let index = usize::try_from(rejected["index"].as_u64()?).ok().filter(|index| is_refused(*index))?;
                outcomes[index] = ReportedOutcome::Refused;
            }
            let accepted = outcomes.iter().filter(|outcome| **outcome == ReportedOutcome::Acked).count();
            (body["accepted"] == accepted && accepted < events).then_some(outcomes)
        }
        422 if (0..events).all(is_refused) => all(ReportedOutcome::Refused),
        503 if retry_after => all(ReportedOutcome::Unknown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::EventRow;

    #[test]
    fn outcomes_follow_the_contract() {
        let mut rng = Rng::with_seed(1);
        let request = |names: [Option<&str>; 2], rng: &mut Rng| EventRequest {
            rows: names.map(|name| EventRow::random(rng, name)).to_vec(),
            body: String::new(),
        };
        let good = request([None, None], &mut rng);
        let mixed = request([None, Some(REFUSED)], &mut rng);
        let bad = request([Some(REFUSED); 2], &mut rng);
        let (unknown, refused, acked) = (ReportedOutcome::Unknown, ReportedOutcome::Refused, ReportedOutcome::Acked);
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
            let outcomes = outcomes(request, status, retry_after, &body);
            assert_eq!(outcomes, expected.map(|outcomes| outcomes.to_vec()), "{status} {body}");
        }
    }
}
