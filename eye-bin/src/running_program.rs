//! An HTTP client for the running program, used by commands beside it.

use std::time::Duration;

use anyhow::bail;
use eye_http::config::ServerConfig;
use ureq::Agent;

/// The time limit for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time limit of one answer: above the default of `receipt_timeout_ms`.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The address of the running program, with a client.
#[derive(Debug)]
pub(crate) struct RunningProgram {
    base: String,
    agent: Agent,
}

impl RunningProgram {
    /// Uses `url` (`--url`), else the address that `server` listens on.
    ///
    /// # Errors
    /// Fails if `url` names a user, or `server` names no port.
    pub(crate) fn new(url: Option<&str>, server: &ServerConfig) -> anyhow::Result<Self> {
        let base = match url {
            Some(url) if url.contains('@') => {
                bail!("--url: the program has no users; leave out the part before `@`")
            }
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => listening_at(&server.listen)?,
        };
        let agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .http_status_as_error(false)
            // A redirected POST becomes a GET, whose answer does not tell if the events were accepted.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .build()
            .into();
        Ok(Self { base, agent })
    }

    /// Returns the URL of `path`, which starts with a slash.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Returns the client. Its requests block, and no status is an error.
    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }
}

/// Turns the address of `[server] listen` into a URL to connect to.
fn listening_at(listen: &str) -> anyhow::Result<String> {
    let address = match listen.rsplit_once(':') {
        Some((_, "0")) => bail!("`[server] listen` takes any free port: name the program's address by --url"),
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    };
    Ok(format!("http://{address}"))
}

/// Parses the value of `--url`.
pub(crate) fn parse_url(url: &str) -> Result<String, &'static str> {
    match url.starts_with("http://") || url.starts_with("https://") {
        true => Ok(url.to_owned()),
        false => Err("expected a URL such as http://127.0.0.1:8000"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn listen_address_becomes_a_url() {
        for (listen, url) in [
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:8000", "http://[::1]:8000"),
            ("[fe80::1]:8000", "http://[fe80::1]:8000"),
            ("localhost:8000", "http://localhost:8000"),
        ] {
            assert_eq!(listening_at(listen).unwrap(), url);
        }
        assert!(listening_at("127.0.0.1:0").unwrap_err().to_string().contains("--url"));
    }

    #[test]
    fn option_precedes_configuration() {
        let program = RunningProgram::new(Some("https://eye.example/there/"), &ServerConfig::default()).unwrap();
        assert_eq!(program.url("/audit"), "https://eye.example/there/audit");
        let program = RunningProgram::new(None, &ServerConfig::default()).unwrap();
        assert_eq!(program.url("/audit"), "http://127.0.0.1:8000/audit");
    }

    #[test]
    fn url_with_a_password_is_refused_without_it() {
        let error = RunningProgram::new(Some("http://u:hush@h"), &ServerConfig::default()).unwrap_err().to_string();
        assert!(error.contains("--url") && !error.contains("hush"), "{error}");
    }
}
