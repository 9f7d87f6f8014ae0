//! The program that runs with this configuration, as other commands reach it: over HTTP.

use std::time::Duration;

use anyhow::bail;
use eye_http::config::ServerConfig;
use ureq::Agent;

/// How long reaching the program may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one answer may take: longer than a request waits for its receipt, unless that was set far higher.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the running program answers.
#[derive(Debug)]
pub(crate) struct RunningProgram {
    base: String,
    agent: Agent,
}

impl RunningProgram {
    /// At `url` (`--url`), else where `server` says that it listens.
    ///
    /// # Errors
    /// When neither tells an address.
    pub(crate) fn new(url: Option<&str>, server: &ServerConfig) -> anyhow::Result<Self> {
        let base = match url {
            Some(url) if url.contains('@') => {
                bail!("--url: the program knows no users, so leave out what is before `@`")
            }
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => listening_at(&server.listen)?,
        };
        let agent = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .http_status_as_error(false)
            // A POST that is redirected becomes a GET, whose answer says nothing about what was sent.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .build()
            .into();
        Ok(Self { base, agent })
    }

    /// The URL of `path`, which starts with a slash.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// For requests, which block. Every answer is given as it is, whatever its status.
    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }
}

/// The address of `[server] listen` as one can connect to it.
fn listening_at(listen: &str) -> anyhow::Result<String> {
    let address = match listen.rsplit_once(':') {
        Some((_, "0")) => bail!("`[server] listen` takes any free port: say with --url where the program listens"),
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    };
    Ok(format!("http://{address}"))
}

/// Reads the value of `--url`.
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
    fn an_address_to_listen_on_becomes_one_to_connect_to() {
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
    fn an_option_goes_before_the_configuration() {
        let running = RunningProgram::new(Some("https://eye.example/there/"), &ServerConfig::default()).unwrap();
        assert_eq!(running.url("/audit"), "https://eye.example/there/audit");
        let running = RunningProgram::new(None, &ServerConfig::default()).unwrap();
        assert_eq!(running.url("/audit"), "http://127.0.0.1:8000/audit");
    }

    #[test]
    fn a_url_with_a_password_is_refused_without_repeating_it() {
        let error = RunningProgram::new(Some("http://u:hush@h"), &ServerConfig::default()).unwrap_err().to_string();
        assert!(error.contains("--url") && !error.contains("hush"), "{error}");
    }
}
