#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use eye_core::testkit::event;
use tempfile::TempDir;

use super::*;

fn letter(number: u64, sink: &str) -> NewDeadLetter {
    NewDeadLetter {
        key: format!("{number}.{sink}"),
        refused_by: format!("sinks.{sink}"),
        reason: "no \"such\" name".to_owned(),
        payload: serde_json::to_vec(&event(number as u32)).unwrap(),
    }
}

async fn put(queue: &TempDir, sink: &str, numbers: impl IntoIterator<Item = u64>) {
    let letters: Vec<NewDeadLetter> = numbers.into_iter().map(|number| letter(number, sink)).collect();
    DiskDeadLetters::new(queue.path()).put(&letters).await.unwrap();
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
async fn stored_letter_is_listed_until_it_is_deleted() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    assert!(list(&letters).await.is_empty(), "without letters there is no folder");
    let before = Timestamp::now();
    put(&queue, "store", [7]).await;
    let stored = letters.get("7.store").await.unwrap().unwrap();
    assert_eq!(letters.page(None).await.unwrap(), std::slice::from_ref(&stored));
    assert!((before..=Timestamp::now()).contains(&stored.time));
    let payload = serde_json::to_vec(&event(7)).unwrap();
    let (id, reason) = ("7.store".to_owned(), "no \"such\" name".to_owned());
    assert_eq!(stored, DeadLetter { id, refused_by: "sinks.store".into(), reason, time: stored.time, payload });

    assert!(letters.delete("7.store").await.unwrap());
    assert!(!letters.delete("7.store").await.unwrap(), "it is deleted");
    assert_eq!(letters.get("7.store").await.unwrap(), None);
    assert!(list(&letters).await.is_empty());
}

#[tokio::test]
async fn pages_are_bounded_and_ordered_despite_deletions() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    for number in 0..(PAGE_LETTERS as u64 + 10) {
        let id = LetterId { number, sink: "store".into() };
        fs::create_dir_all(queue.path().join(FOLDER)).unwrap();
        fs::write(file(&queue, &id.file_name()), "").unwrap();
    }
    put(&queue, "archive", [5]).await;
    let first = letters.page(None).await.unwrap();
    assert_eq!(first.len(), PAGE_LETTERS);
    let all = list(&letters).await;
    assert_eq!(all.len(), PAGE_LETTERS + 11);
    assert_eq!(all[4..8], ["4.store", "5.archive", "5.store", "6.store"]);
    assert!(letters.delete(&first.last().unwrap().id).await.unwrap());
    assert_eq!(letters.page(Some(&first.last().unwrap().id)).await.unwrap()[0].id, all[PAGE_LETTERS]);
}

#[tokio::test]
async fn page_ends_at_its_bytes() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    let large = |number| NewDeadLetter { payload: vec![b'x'; PAGE_BYTES / 2], ..letter(number, "store") };
    letters.put(&[0, 1, 2, 3, 4].map(large)).await.unwrap();
    assert_eq!(letters.page(None).await.unwrap().len(), 2);
    assert_eq!(list(&letters).await.len(), 5);
}

/// The payload is any sequence of bytes, line breaks included.
#[tokio::test]
async fn payload_is_returned_byte_for_byte() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    for payload in [b"".to_vec(), b"\n".to_vec(), vec![0xFF, b'\n', 0, b'\n']] {
        letters.put(&[NewDeadLetter { payload: payload.clone(), ..letter(1, "store") }]).await.unwrap();
        assert_eq!(letters.get("1.store").await.unwrap().unwrap().payload, payload);
    }
}

#[tokio::test]
async fn damaged_letter_is_listed_and_hides_no_other() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    put(&queue, "store", 0..3).await;
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
async fn letter_put_again_is_stored_once() {
    let queue = queue();
    let letters = DiskDeadLetters::new(queue.path());
    put(&queue, "store", 0..3).await;
    letters.delete("1.store").await.unwrap();
    put(&queue, "store", 1..5).await;
    assert_eq!(list(&letters).await, ["0.store", "1.store", "2.store", "3.store", "4.store"]);
}

#[tokio::test]
async fn unfinished_and_foreign_files_are_no_letters() {
    let queue = queue();
    put(&queue, "store", [1]).await;
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
async fn ids_do_not_lead_out_of_the_folder() {
    let queue = queue();
    put(&queue, "store", [1]).await;
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
        let letter = NewDeadLetter { key: id.to_owned(), ..letter(1, "store") };
        assert!(letters.put(&[letter]).await.is_err(), "{id:?}");
    }
    assert!(queue.path().join("00000000000000000001.x.letter").exists());
    assert_eq!(list(&letters).await, ["1.store"]);
}

#[tokio::test]
async fn error_names_the_path_of_a_missing_queue() {
    let folder = queue();
    let error = DiskDeadLetters::new(&folder.path().join("none")).page(None).await.unwrap_err().to_string();
    assert!(error.contains(folder.path().join("none").to_str().unwrap()), "{error}");
}

/// Two commands delete all letters while the program stores more.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_put_and_delete_lose_no_letter() {
    let queue = queue();
    put(&queue, "store", 0..50).await;
    let delete_all = async || {
        let letters = DiskDeadLetters::new(queue.path());
        let mut deleted = 0;
        for id in list(&letters).await {
            deleted += usize::from(letters.delete(&id).await.unwrap());
        }
        deleted
    };
    let ((), first, second) = tokio::join!(put(&queue, "store", 50..100), delete_all(), delete_all());
    let left = list(&DiskDeadLetters::new(queue.path())).await.len();
    assert_eq!(first + second + left, 100, "each letter was deleted once, or is still stored");
}
