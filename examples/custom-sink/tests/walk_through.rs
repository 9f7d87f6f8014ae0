//! The quotations in `docs/custom-sink.md`: they must match the example and the conformance suite.

use std::collections::BTreeSet;

const DOC: &str = include_str!("../../../docs/custom-sink.md");
const TESTKIT: &str = include_str!("../../../eye-core/src/testkit/sink.rs");
const EXAMPLE: [&str; 4] = [
    include_str!("../Cargo.toml"),
    include_str!("../eye.toml"),
    include_str!("../src/main.rs"),
    include_str!("../src/ndjson.rs"),
];

/// Returns the code blocks of the document in this language.
fn snippets(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    DOC.split(&fence).skip(1).map(|block| block.split("```").next().unwrap_or_default()).collect()
}

#[test]
fn every_snippet_is_in_the_example() {
    for language in ["rust", "toml"] {
        let snippets = snippets(language);
        assert!(!snippets.is_empty(), "the document has no {language}");
        for snippet in snippets {
            assert!(EXAMPLE.iter().any(|file| file.contains(snippet)), "the example does not contain:\n{snippet}");
        }
    }
}

#[test]
fn table_lists_every_case_of_the_suite() {
    let documented: BTreeSet<&str> = DOC
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.contains('_'))
        .collect();
    let (_, cases) = TESTKIT.split_once("    run! {\n").expect("the suite lists its cases");
    let (cases, _) = cases.split_once('}').expect("the list has an end");
    assert_eq!(documented, cases.split_whitespace().collect());
}
