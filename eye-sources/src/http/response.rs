//! Verdicts as HTTP responses.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::verdict::{Answer, Verdict};

fn status(verdict: Verdict) -> StatusCode {
    match verdict {
        Verdict::Accepted => StatusCode::CREATED,
        Verdict::Partial => StatusCode::OK,
        Verdict::Invalid => StatusCode::BAD_REQUEST,
        Verdict::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Verdict::Unsupported => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Verdict::TooSlow => StatusCode::REQUEST_TIMEOUT,
        Verdict::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        Verdict::RetryLater => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let (status, retry_after, closes) = (status(self.verdict()), self.retry_after(), self.closes());
        let mut response = Response::new(Body::from(self.into_body()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry_after) = retry_after {
            let seconds = retry_after.as_millis().div_ceil(1000).max(1) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
