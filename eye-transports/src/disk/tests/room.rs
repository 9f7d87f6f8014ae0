//! Where there is no room, or no file any more.

use super::*;

#[tokio::test]
async fn past_the_quota_nothing_is_taken_until_there_is_room_again() {
    let folder = folder();
    let config = DiskConfig { max_bytes: 200_000, ..config(&folder) };
    let transport = Arc::new(open(&config).await);
    let mut subscription = transport.subscribe("store").await.unwrap();
    let board = HealthBoard::default();
    let (watched, health) = (transport.clone(), board.component("transport"));
    tokio::spawn(async move { watched.watch(health).await });
    let mut taken = 0;
    let reason = loop {
        match transport.publish(events(taken, taken + 10)).await {
            Ok(receipt) => assert_eq!(receipt.outcome().await, Outcome::Delivered),
            Err(PublishError::Full { reason, .. }) => break reason,
            Err(error) => panic!("{error}"),
        }
        taken += 10;
    };
    assert!(reason.contains("transport.max_bytes = 200000"), "{reason}");
    let on_disk: u64 = segments(&config).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!((190_000..=200_000).contains(&on_disk), "{on_disk}");
    assert!(transport.publish(events(taken, taken + 10)).await.is_err());
    eventually("it says that it is full", || matches!(board.components()[0].state, State::Unavailable { .. })).await;

    let mut received = Vec::new();
    while received.len() < taken as usize {
        received.extend(next(&mut *subscription, Outcome::Delivered).await);
    }
    assert_eq!(received, events(0, taken));
    let held = tokio::spawn(async move { subscription.receive(WIDE).await });
    eventually("it has room", || segments(&config).len() == 1 && board.components()[0].state == State::Ready).await;
    commit(&transport, taken, taken + 10).await;
    assert_eq!(held.await.unwrap().unwrap().pop().unwrap().events, events(taken, taken + 10));
}

#[tokio::test]
async fn nothing_is_acknowledged_into_files_that_are_gone() {
    let folder = folder();
    let config = config(&folder);
    let transport = open(&config).await;
    commit(&transport, 0, 1).await;
    fs::remove_dir_all(&config.path).unwrap();
    let receipt = transport.publish(events(1, 2)).await.unwrap();
    assert!(matches!(receipt.outcome().await, Outcome::Failed { .. }));
    let error = transport.watch(HealthBoard::default().component("transport")).await.to_string();
    assert!(error.contains("removed or replaced"), "{error}");
}

#[tokio::test]
async fn below_the_free_space_to_be_left_nothing_is_taken() {
    let folder = folder();
    let transport = open(&DiskConfig { min_free_bytes: u64::MAX, ..config(&folder) }).await;
    let reason = transport.log.refusing().unwrap_or_default();
    assert!(reason.contains("transport.min_free_bytes"), "it says so before anything comes: {reason}");
    let error = transport.publish(events(0, 1)).await.unwrap_err().to_string();
    assert!(error.contains("transport.min_free_bytes"), "{error}");
}

#[tokio::test]
async fn what_found_no_room_is_refused_until_it_would_find_some() {
    let folder = folder();
    let log = open_log(&DiskConfig { max_bytes: 1000, ..config(&folder) }).await;
    log.reserve(600).unwrap();
    assert_eq!(log.refusing(), None);
    log.reserve(500).unwrap_err();
    for _ in 0..3 {
        assert!(log.refusing().is_some_and(|reason| reason.contains("transport.max_bytes = 1000")));
    }
    log.release(200);
    assert!(log.refusing().is_some(), "until now it was");
    assert_eq!(log.refusing(), None);
}

/// A kill at that moment would leave a cursor before the oldest segment, as if what that had were lost.
#[tokio::test]
async fn cursors_that_found_no_room_are_saved_once_segments_have_made_some() {
    let folder = folder();
    let config = config(&folder);
    three_records(&config).await;
    let segment = segments(&config).remove(0);
    let log = Arc::new(open_log(&config).await);
    log.subscribe("store").unwrap();
    log.start();
    log.ack("store", 6);
    // There is no room as long as the segment is there.
    fs::remove_file(&segment).unwrap();
    std::os::unix::fs::symlink("/dev/full", &segment).unwrap();
    std::os::unix::fs::symlink(&segment, config.path.join("cursors.unfinished")).unwrap();
    assert!(log.save_cursors().is_err());
    let queue = mpsc::channel().1;
    Appender::new(log, watch::channel(0).0, watch::channel(Status::Ready).0).run(&queue);
    let saved = fs::read_to_string(config.path.join("cursors")).unwrap();
    assert!(saved.contains("\"store\":6"), "{saved}");
}

#[tokio::test]
async fn a_request_larger_than_what_may_wait_is_taken_when_nothing_waits() {
    let folder = folder();
    let config = DiskConfig { max_bytes: 1 << 30, ..config(&folder) };
    let log = open_log(&config).await;
    let large = 65 << 20;
    log.reserve(1).unwrap();
    assert!(log.reserve(large).unwrap_err().contains("wait for the disk"));
    log.release(1);
    log.reserve(large).unwrap();
    assert!(log.reserve(1).unwrap_err().contains("wait for the disk"));
}

#[test]
fn a_quota_too_small_for_a_few_requests_is_an_error() {
    let check = |max_bytes| DiskConfig { max_bytes, ..DiskConfig::default() }.check();
    assert!(check(MIN_MAX_BYTES - 1)[0].to_string().contains("max_bytes"));
    assert!(check(MIN_MAX_BYTES).is_empty());
}
