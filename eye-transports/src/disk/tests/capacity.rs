//! Full queues, full disks and removed files.

use super::*;

#[tokio::test]
async fn full_queue_refuses_until_segments_are_removed() {
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
    eventually("the queue reports that it is full", || {
        matches!(board.components()[0].state, ComponentState::Unavailable { .. })
    })
    .await;

    let mut received = Vec::new();
    while received.len() < taken as usize {
        received.extend(next(&mut *subscription, Outcome::Delivered).await);
    }
    assert_eq!(received, events(0, taken));
    let held = tokio::spawn(async move { subscription.receive(WIDE).await });
    eventually("the queue has capacity", || {
        segments(&config).len() == 1 && board.components()[0].state == ComponentState::Ready
    })
    .await;
    commit(&transport, taken, taken + 10).await;
    assert_eq!(held.await.unwrap().unwrap().pop().unwrap().events, events(taken, taken + 10));
}

#[tokio::test]
async fn removed_segment_fails_receipts_and_ends_the_transport() {
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
async fn disk_below_min_free_bytes_refuses_requests() {
    let folder = folder();
    let transport = open(&DiskConfig { min_free_bytes: u64::MAX, ..config(&folder) }).await;
    let reason = transport.log.capacity().refusing().unwrap_or_default();
    assert!(reason.contains("transport.min_free_bytes"), "reported before the first request: {reason}");
    let error = transport.publish(events(0, 1)).await.unwrap_err().to_string();
    assert!(error.contains("transport.min_free_bytes"), "{error}");
}

/// Otherwise a kill would leave a cursor before the oldest segment, and that segment's events would count as missing.
#[tokio::test]
async fn cursors_are_saved_once_a_removal_made_space() {
    let folder = folder();
    let config = config(&folder);
    three_records(&config).await;
    let segment = segments(&config).remove(0);
    let log = Arc::new(open_log(&config).await);
    log.subscribe("store").unwrap();
    log.start();
    log.ack("store", 6);
    // The save fails like on a full disk as long as the segment exists.
    fs::remove_file(&segment).unwrap();
    std::os::unix::fs::symlink("/dev/full", &segment).unwrap();
    std::os::unix::fs::symlink(&segment, config.path.join("cursors.unfinished")).unwrap();
    assert!(log.save_cursors().is_err());
    let queue = mpsc::channel().1;
    Appender::new(log, watch::channel(0).0, watch::channel(QueueStatus::Ready).0).run(&queue);
    let saved = fs::read_to_string(config.path.join("cursors")).unwrap();
    assert!(saved.contains("\"store\":6"), "{saved}");
}

#[test]
fn too_small_max_bytes_is_a_fault() {
    let check = |max_bytes| DiskConfig { max_bytes, ..DiskConfig::default() }.check();
    assert!(check(MIN_MAX_BYTES - 1)[0].key() == "max_bytes");
    assert!(check(MIN_MAX_BYTES).is_empty());
}
