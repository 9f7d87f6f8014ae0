//! Validation of database URLs, when the configuration is read. No message shows a part that may be a secret.

use serde::Deserialize;

/// The default of `max_read_connections`.
const DEFAULT_MAX_READ_CONNECTIONS: u32 = 4;

/// The number of connections that may answer queries at once: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub(super) struct MaxReadConnections(pub(super) u32);

impl Default for MaxReadConnections {
    fn default() -> Self {
        Self(DEFAULT_MAX_READ_CONNECTIONS)
    }
}

impl TryFrom<u32> for MaxReadConnections {
    type Error = String;

    fn try_from(count: u32) -> Result<Self, String> {
        match count {
            1..=1000 => Ok(Self(count)),
            _ => Err(format!("{count} connections: at least 1 and at most 1000 are possible")),
        }
    }
}

/// Checks that a URL has one of the schemes and no unknown parameter: a misspelt `sslmode` must not turn encryption
/// off. The messages quote names alone, since the rest may be a secret.
pub(super) fn check(url: &str, schemes: &[&str], example: &str, parameters: &[&str]) -> Result<(), String> {
    let rest = url.split_once(':').filter(|(scheme, _)| schemes.contains(scheme));
    let Some((_, rest)) = rest else {
        let schemes = schemes.iter().map(|scheme| format!("`{scheme}:`")).collect::<Vec<_>>().join(" or ");
        return Err(format!("the URL must begin with {schemes}, such as `{example}`"));
    };
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let names =
        query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")).0);
    for name in names {
        if !parameters.contains(&name) {
            return Err(match parameters {
                _ if query.contains('@') => {
                    "the URL has an unknown parameter. Write a `?` in its user or password as `%3F`".to_owned()
                }
                [] => format!("the URL takes no parameters, but has `{name}`"),
                _ => format!("the URL has an unknown parameter `{name}`; known are: {}", parameters.join(", ")),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_connections_are_bounded() {
        for (count, is_fine) in [(0, false), (1, true), (1000, true), (1001, false)] {
            assert_eq!(MaxReadConnections::try_from(count).is_ok(), is_fine, "{count}");
        }
    }

    #[test]
    fn unknown_parameter_is_an_error() {
        let check = |url| check(url, &["db"], "db://HOST", &["tls", "ca"]);
        for url in ["db://host", "db://host?", "db://host?tls=on", "db://host?ca=a%26b&tls", "db:///?&tls=a=b"] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        for (url, name) in [("db://host?TLS=on", "TLS"), ("db://h?tls=on&secret=x", "secret"), ("db://h?x", "x")] {
            let error = check(url).err().unwrap_or_default();
            assert!(error.contains(&format!("`{name}`")) && error.contains("tls, ca"), "{url}: {error}");
        }
        for url in ["db://me:hun?ter2@host/db", "db://me:?ter2=x&tls@host", "db://hun?ter2:x@host?tls=on"] {
            let error = check(url).err().unwrap_or_default();
            assert!(error.contains("`%3F`") && !error.contains("ter2"), "{url}: {error}");
        }
    }
}
