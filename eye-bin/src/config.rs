//! The program's configuration: its file, and the sections that it holds.
//!
//! [`Config::load`] finds the file and reports every fault in it at once.

use std::env::{self, VarError};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use eye_api::events::QueryConfig;
use eye_config::{ConfigErrors, Document};
use eye_core::pipeline_config::PipelineConfig;
use eye_core::registry::Registry;
use eye_core::writer::WriterConfig;
use eye_http::config::ServerConfig;

use crate::telemetry::SentryConfig;

/// Every setting of the program.
#[derive(Debug)]
pub struct Config {
    /// The file as it was named, or `built-in configuration`.
    pub file: String,
    /// The time limit of a shutdown.
    pub shutdown_timeout: Duration,
    /// Settings of the listener.
    pub server: ServerConfig,
    /// Settings of the reports to Sentry.
    pub sentry: SentryConfig,
    /// Settings of queries.
    pub query: QueryConfig,
    /// Batches and retries of every sink.
    pub writer: WriterConfig,
    /// Sources, transport, sinks, and the sink that answers queries.
    pub pipeline: PipelineConfig,
}

/// The configuration without a file.
const BUILT_IN_NAME: &str = "built-in configuration";
const BUILT_IN: &str = include_str!("../../config/sqlite.toml");

/// The file in the working folder that applies without `--config` and `$EYE_CONFIG`.
const DEFAULT_FILE: &str = "eye.toml";

impl Config {
    /// Returns true if no file was found, so that the built-in configuration applies.
    pub fn is_built_in(&self) -> bool {
        self.file == BUILT_IN_NAME
    }

    /// Loads the configuration of `option` (`--config`), else of `$EYE_CONFIG`, else of `./eye.toml`, else the built-in one.
    ///
    /// # Errors
    /// Fails if a named file does not exist, a file cannot be read, or its content has faults.
    pub fn load(option: Option<PathBuf>, registry: &Registry) -> Result<Self, ConfigError> {
        let (file, text) = find(option, env::var_os("EYE_CONFIG"), Path::new(DEFAULT_FILE))?;
        Ok(Self::parse(file, &text, registry, |name| env::var(name))?)
    }

    fn parse(
        file: String,
        text: &str,
        registry: &Registry,
        variable: impl Fn(&str) -> Result<String, VarError>,
    ) -> Result<Self, ConfigErrors> {
        let mut document = Document::parse(&file, text, variable)?;
        let shutdown_timeout = Duration::from_secs(document.value("shutdown_timeout_s", 10_u32).into());
        let server = document.section("server");
        let sentry = document.section("sentry");
        let query = document.section("query");
        let writer = document.section("writer");
        let pipeline = PipelineConfig::read(document, registry)?;
        Ok(Self { file, shutdown_timeout, server, sentry, query, writer, pipeline })
    }
}

/// Returns the name and the text of the configuration.
fn find(option: Option<PathBuf>, variable: Option<OsString>, default: &Path) -> Result<(String, String), ConfigError> {
    if let Some(file) = option {
        return read(&file, "give --config a file that can be read");
    }
    if let Some(file) = variable.filter(|file| !file.is_empty()) {
        return read(Path::new(&file), "$EYE_CONFIG names this file: correct or unset that variable");
    }
    match read(default, "make it readable, or move it away to run with the built-in configuration") {
        Err(ConfigError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Ok((BUILT_IN_NAME.to_owned(), BUILT_IN.to_owned()))
        }
        result => result,
    }
}

fn read(file: &Path, way_out: &'static str) -> Result<(String, String), ConfigError> {
    let name = file.display().to_string();
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => return Err(ConfigError::Unreadable { name, error, way_out }),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok((name, text)),
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(ConfigError::NotUtf8 { name, line })
        }
    }
}

/// Lists the pipeline's components in one line.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PipelineConfig { sources, transport, sinks, query_sink } = &self.pipeline;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        write!(
            f,
            "{} source{}, transport {}, {} sink{}, ",
            sources.len(),
            plural(sources.len()),
            transport.type_name(),
            sinks.len(),
            plural(sinks.len()),
        )?;
        match query_sink {
            Some(sink) => write!(f, "queries answered by {sink}"),
            None => f.write_str("no sink that can answer queries"),
        }
    }
}

/// A configuration that cannot be used. The program exits with [`crate::cli::EXIT_CONFIG`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that does not exist or may not be read.
    #[error("{name}: {error}; {way_out}")]
    Unreadable {
        /// The file.
        name: String,
        /// The system's error.
        error: io::Error,
        /// The way out.
        way_out: &'static str,
    },
    /// A file that is not UTF-8 text.
    #[error("{name}:{line}: this is not UTF-8 text")]
    NotUtf8 {
        /// The file.
        name: String,
        /// The line of the first invalid byte.
        line: usize,
    },
    /// Faults in the content.
    #[error(transparent)]
    Faults(#[from] ConfigErrors),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::built_in as registry;

    #[test]
    fn option_precedes_variable_precedes_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let (option, variable, default) = (file("option"), file("variable"), file("default"));
        let found = |option: Option<&PathBuf>, variable: Option<&PathBuf>| {
            let variable = variable.map(|path| path.clone().into_os_string());
            find(option.cloned(), variable, &default).unwrap().1
        };
        assert_eq!(found(Some(&option), Some(&variable)), "option");
        assert_eq!(found(None, Some(&variable)), "variable");
        assert_eq!(found(None, None), "default");
        assert_eq!(find(None, Some(OsString::new()), &default).unwrap().1, "default");
    }

    #[test]
    fn only_a_missing_default_file_means_built_in() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none.toml");
        assert_eq!(find(None, None, &missing).unwrap(), ("built-in configuration".into(), BUILT_IN.into()));
        let errors = [
            find(Some(missing.clone()), None, &missing),
            find(None, Some(missing.clone().into_os_string()), &missing),
            find(None, None, folder.path()),
        ];
        let ways_out = ["--config", "$EYE_CONFIG", "built-in configuration"];
        for (error, way_out) in errors.into_iter().zip(ways_out) {
            let message = error.unwrap_err().to_string();
            assert!(message.starts_with(folder.path().to_str().unwrap()) && message.contains(way_out), "{message}");
        }
    }

    #[test]
    fn invalid_utf_8_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("eye.toml");
        fs::write(&file, b"a = 1\n# \xff\n").unwrap();
        let message = find(Some(file), None, Path::new("none")).unwrap_err().to_string();
        assert!(message.ends_with("eye.toml:2: this is not UTF-8 text"), "{message}");
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let text = "[sources.web]\ntype = \"http\"\n[sinks.a]\ntype = \"postgres\"\nurl = \"postgres://u:hush@h/d\"\n\
                    [sentry]\ndsn = \"https://hush@sentry.example/1\"\n";
        let config = Config::parse("eye.toml".into(), text, &registry(), |_| Err(VarError::NotPresent)).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
    }
}
