//! `eye check`: the errors of every wrong file in `tests/contract/check`, and the examples in `config`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::program;

/// Runs the program in this folder of the repository without environment variables.
fn eye(folder: &str, arguments: &[&str]) -> Output {
    eye_with(&[], folder, arguments)
}

/// Runs the program in this folder of the repository with these environment variables.
fn eye_with(variables: &[(&str, &str)], folder: &str, arguments: &[&str]) -> Output {
    Command::new(program())
        .args(arguments)
        .current_dir(repository().join(folder))
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .expect("the built program starts")
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("eye-bin is in the repository")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

fn toml_files(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(repository().join(folder)).expect("the folder exists");
    let names = entries.map(|entry| entry.expect("the folder can be read").file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().expect("names are UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn errors_of_wrong_files_match_the_snapshot() {
    let mut lines = String::new();
    for file in toml_files("tests/contract/check") {
        let output = eye("tests/contract/check", &["check", "--config", &file]);
        assert_eq!(output.status.code(), Some(78), "{file}");
        assert_eq!(text(&output.stdout), "", "{file}");
        lines += text(&output.stderr);
    }
    assert!(!lines.contains("hush"), "a secret is shown:\n{lines}");
    insta::assert_snapshot!("check", lines);
}

#[test]
fn examples_are_valid() {
    let mut lines = String::new();
    for file in toml_files("config") {
        // docker-compose.yml sets this variable.
        let variables: &[_] = match file.as_str() {
            "docker-compose.toml" => &[("DATABASE_URL", "postgres://eye:eye@postgres:5432/eye")],
            _ => &[],
        };
        let output = eye_with(variables, "config", &["check", "--config", &file]);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{file}");
        lines += text(&output.stdout);
    }
    insta::assert_snapshot!("examples", lines);
}

#[test]
fn check_without_a_file_uses_the_built_in_configuration() {
    let output = eye("tests", &["check"]);
    assert_eq!(output.status.code(), Some(0));
    let expected = "built-in configuration: ok: 1 source, transport memory, 1 sink, queries answered by store\n";
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn file_in_the_working_folder_is_used() {
    let output = eye("config", &["check"]);
    assert!(text(&output.stdout).starts_with("eye.toml: ok: "), "{output:?}");
}

#[test]
fn missing_file_is_a_configuration_error() {
    let output = eye("config", &["run", "--config", "none.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).starts_with("none.toml: "), "{output:?}");

    let output = eye_with(&[("EYE_CONFIG", "none.toml")], "config", &["run"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("$EYE_CONFIG"), "{output:?}");
}

#[test]
fn wrong_usage_exits_with_2() {
    assert_eq!(eye("config", &["chekc"]).status.code(), Some(2));
}
