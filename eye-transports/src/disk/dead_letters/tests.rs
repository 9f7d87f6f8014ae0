#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use eye_core::testkit::{event, events};
use tempfile::TempDir;

use super::*;

fn write_letters(queue: &TempDir, sink: &str, numbers: impl IntoIterator<Item = u64>) {
    let batch: Vec<Numbered> = numbers.into_iter().map(|number| (number, event(number as u32))).collect();
    let refused: Vec<_> =
        (0..batch.len()).map(|index| Rejection { index, reason: "no \"such\" name".into() }).collect();
    write(queue.path(), sink, &batch, &refused).unwrap();
}

fn queue() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn file(queue: &TempDir, name: &str) -> PathBuf {
    queue.path().join(FOLDER).join(name)
}

/// All ids, page by page.
async fn list(letters: &DiskDeadLetters) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let page = letters.page(all.last().map(String::as_str)).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page.into_iter().map(|letter| letter.id));
    }
}

#[tokio::test]
async fn what_is_written_is_read_until_it_is_deleted() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    assert!(list(&letters).await.is_empty(), "a queue without dead letters has no folder for them");
    let before = Timestamp::now();
    write_letters(&queue, "store", [7]);
    let letter = letters.get("7.store").await.unwrap().unwrap();
    assert_eq!(letters.page(None).await.unwrap(), std::slice::from_ref(&letter));
    assert!((before..=Timestamp::now()).contains(&letter.time));
    let payload = serde_json::to_vec(&event(7)).unwrap();
    let (id, reason) = ("7.store".to_owned(), "no \"such\" name".to_owned());
    assert_eq!(letter, DeadLetter { id, refused_by: "sinks.store".into(), reason, time: letter.time, payload });

    assert!(letters.delete("7.store").await.unwrap());
    assert!(!letters.delete("7.store").await.unwrap(), "it is gone");
    assert_eq!(letters.get("7.store").await.unwrap(), None);
    assert!(list(&letters).await.is_empty());
}

#[tokio::test]
async fn pages_are_bounded_and_in_order_and_survive_deletions() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    for number in 0..(PAGE_LETTERS as u64 + 10) {
        let id = Id { number, sink: "store".into() };
        fs::create_dir_all(queue.path().join(FOLDER)).unwrap();
        fs::write(file(&queue, &id.file_name()), "").unwrap();
    }
    write_letters(&queue, "archive", [5]);
    let first = letters.page(None).await.unwrap();
    assert_eq!(first.len(), PAGE_LETTERS);
    let all = list(&letters).await;
    assert_eq!(all.len(), PAGE_LETTERS + 11);
    assert_eq!(all[4..8], ["4.store", "5.archive", "5.store", "6.store"]);
    assert!(letters.delete(&first.last().unwrap().id).await.unwrap());
    assert_eq!(letters.page(Some(&first.last().unwrap().id)).await.unwrap()[0].id, all[PAGE_LETTERS]);
}

#[tokio::test]
async fn a_page_ends_at_its_bytes() {
    let queue = queue();
    let large = (0..5).map(|number| {
        let fields = eye_core::event::EventFields {
            id: event(0).id(),
            timestamp: Timestamp::MIN,
            received_at: Timestamp::MIN,
            session_id: "s",
            category: "c",
            name: "n",
            data: &format!("\"{}\"", "x".repeat(PAGE_BYTES / 2)),
        };
        (number, Event::from(fields))
    });
    let refused = [0, 1, 2, 3, 4].map(|index| Rejection { index, reason: "bad".into() });
    write(queue.path(), "store", &large.collect::<Vec<_>>(), &refused).unwrap();
    let letters = DiskDeadLetters::new(queue.path());
    assert_eq!(letters.page(None).await.unwrap().len(), 2);
    assert_eq!(list(&letters).await.len(), 5);
}

#[tokio::test]
async fn damage_is_seen_and_hides_no_other() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    write_letters(&queue, "store", 0..3);
    let path = file(&queue, "00000000000000000001.store.letter");
    let sound = fs::read(&path).unwrap();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let letter = letters.get("1.store").await.unwrap().unwrap();
        assert!(letter.reason.starts_with("damaged on the disk"), "byte {at}: {letter:?}");
        assert_eq!(letter.payload, damaged);
    }
    for length in 0..sound.len() {
        fs::write(&path, &sound[..length]).unwrap();
        assert!(letters.get("1.store").await.unwrap().unwrap().reason.starts_with("damaged"), "{length} bytes");
    }
    fs::remove_file(&path).unwrap();
    // Even root cannot read a folder as a file.
    fs::create_dir(&path).unwrap();
    assert!(letters.get("1.store").await.unwrap().unwrap().reason.contains("cannot be read"));
    assert_eq!(list(&letters).await, ["0.store", "1.store", "2.store"]);
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert!(letters.delete("1.store").await.unwrap());
}

#[tokio::test]
async fn a_letter_that_comes_again_after_a_crash_is_there_once() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    write_letters(&queue, "store", 0..3);
    letters.delete("1.store").await.unwrap();
    write_letters(&queue, "store", 1..5);
    assert_eq!(list(&letters).await, ["0.store", "1.store", "2.store", "3.store", "4.store"]);
}

#[tokio::test]
async fn what_is_half_written_or_somebody_elses_is_no_letter() {
    let queue = queue();
    write_letters(&queue, "store", [1]);
    for foreign in [
        "00000000000000000002.store.letter.unfinished",
        "3.store.letter",
        "00000000000000000004.letter",
        "00000000000000000005.a.b.letter",
        "+0000000000000000006.store.letter",
        "00000000000000000007..letter",
        "note.txt",
    ] {
        fs::write(file(&queue, foreign), "x").unwrap();
    }
    assert_eq!(list(&DiskDeadLetters::new(queue.path())).await, ["1.store"]);
    assert_eq!(next_number(queue.path()).unwrap(), 2);
}

#[tokio::test]
async fn ids_lead_nowhere_else() {
    let queue = queue();
    write_letters(&queue, "store", [1]);
    fs::write(queue.path().join("00000000000000000001.x.letter"), "x").unwrap();
    let letters = DiskDeadLetters::new(queue.path());
    let long = format!("1.{}", "a".repeat(65));
    for id in [
        "",
        ".",
        "..",
        "1",
        "1.",
        ".store",
        "01.store",
        "+1.store",
        " 1.store",
        "1.store ",
        "1.store.letter",
        "1.store\0",
        "1.../x",
        "1./../x",
        "../1.x",
        "1.a/../../00000000000000000001.x",
        "99999999999999999999.store",
        "1.störe",
        &long,
    ] {
        assert_eq!(letters.get(id).await.unwrap(), None, "{id:?}");
        assert!(!letters.delete(id).await.unwrap(), "{id:?}");
        assert!(letters.page(Some(id)).await.is_err(), "{id:?}");
    }
    assert!(queue.path().join("00000000000000000001.x.letter").exists());
    assert_eq!(list(&letters).await, ["1.store"]);
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_said_with_its_path() {
    let folder = queue();
    let error = DiskDeadLetters::new(&folder.path().join("none")).page(None).await.unwrap_err().to_string();
    assert!(error.contains(folder.path().join("none").to_str().unwrap()), "{error}");
}

/// Two commands delete all there is while the program writes more.
#[tokio::test(flavor = "multi_thread")]
async fn deleting_and_writing_at_once_loses_nothing_and_fails_nobody() {
    let queue = queue();
    write_letters(&queue, "store", 0..50);
    let delete_all = async || {
        let letters = DiskDeadLetters::new(queue.path());
        let mut deleted = 0;
        for id in list(&letters).await {
            deleted += usize::from(letters.delete(&id).await.unwrap());
        }
        deleted
    };
    let path = queue.path().to_owned();
    let writing = spawn_blocking(move || {
        let batch: Vec<Numbered> = (50..).zip(events(50, 100)).collect();
        let refused: Vec<_> = (0..50).map(|index| Rejection { index, reason: "bad".into() }).collect();
        write(&path, "store", &batch, &refused).unwrap();
    });
    let (first, second) = tokio::join!(delete_all(), delete_all());
    writing.await.unwrap();
    let left = list(&DiskDeadLetters::new(queue.path())).await.len();
    assert_eq!(first + second + left, 100, "each was deleted by one of them, or is there");
}
