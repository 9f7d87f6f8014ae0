//! Lost and damaged files.

use super::*;

/// Damages every third byte of a record in turn, so that every field is hit.
#[tokio::test]
async fn damage_costs_only_the_record_that_it_hits() {
    let folder = folder();
    let config = config(&folder);
    let length = three_records(&config).await;
    let segment = segments(&config)[0].clone();
    let sound = fs::read(&segment).unwrap();
    for at in (0..length).map(|at| length + at).step_by(3) {
        let _ = fs::remove_dir_all(&config.path);
        fs::create_dir_all(&config.path).unwrap();
        let mut damaged = sound.clone();
        damaged[at] ^= 0x10;
        fs::write(&segment, damaged).unwrap();
        assert_eq!(drain(&config).await, [events(0, 2), events(4, 6)].concat(), "byte {at}");
        let kept = fs::read(config.path.join(format!("damaged/{:020}-{length}.bin", 0))).unwrap();
        assert_eq!(kept.len(), length, "byte {at}");
        assert_eq!(drain(&config).await, [], "the damage is skipped once");
    }
}

#[tokio::test]
async fn custody_counts_pending_at_start_and_missing() {
    let folder = folder();
    let config = config(&folder);
    let length = three_records(&config).await;
    let segment = segments(&config)[0].clone();
    let mut content = fs::read(&segment).unwrap();
    content[length + 40] ^= 0x10;
    fs::write(&segment, content).unwrap();
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    assert_eq!(custody(&transport), [6, 6, 6, 0], "nothing is read yet");
    commit(&transport, 6, 7).await;
    let narrow = BatchLimits { max_events: 1, ..WIDE };
    let received = subscription.receive(narrow).await.unwrap().remove(0);
    assert_eq!((received.events, custody(&transport)), (events(0, 1), [7, 6, 7, 0]));
    received.ack.settle(Outcome::Delivered);
    for outcome in [Outcome::failed("unavailable"), Outcome::Delivered] {
        assert_eq!(next(&mut *subscription, outcome).await, events(1, 2), "a batch ends before a gap");
        assert_eq!(custody(&transport), [7, 6, 4, 2], "missing events are not pending");
    }
    let received = subscription.receive(WIDE).await.unwrap().remove(0);
    assert_eq!((received.events, received.position.unwrap().key(0)), (events(4, 7), "4".to_owned()));
    received.ack.settle(Outcome::Delivered);
    transport.close();
    end(subscription).await;
    assert_eq!(custody(&transport), [7, 6, 0, 2]);
}

#[tokio::test]
async fn incomplete_end_is_set_aside_and_cut_off() {
    let folder = folder();
    let config = config(&folder);
    let length = three_records(&config).await;
    // A crash cuts the last segment.
    for empty in &segments(&config)[1..] {
        fs::remove_file(empty).unwrap();
    }
    let segment = &segments(&config)[0];
    fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(length as u64 * 3 - 1).unwrap();
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 10, 12).await;
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(0, 4));
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(10, 12));
    let kept = config.path.join(format!("damaged/{:020}-{}.bin", 0, length * 2));
    assert_eq!(fs::metadata(kept).unwrap().len(), length as u64 - 1);
}

/// The incomplete write is the whole content of a segment, so the next segment gets the same name.
#[tokio::test]
async fn incomplete_end_hides_no_later_event() {
    let folder = folder();
    let config = config(&folder);
    fs::create_dir(&config.path).unwrap();
    fs::write(config.path.join(format!("{:020}.log", 0)), [0xFE; 30]).unwrap();
    fs::write(config.path.join("damaged"), "in the way").unwrap();
    let transport = open(&config).await;
    let mut reader = reader::LogReader::new(transport.log.clone(), "store".to_owned(), 0);
    reader.read(WIDE).unwrap();
    commit(&transport, 0, 5).await;
    reader.read(WIDE).unwrap();
    assert_eq!(reader.batch(WIDE), (0, events(0, 5)));
}

/// New events get numbers that no sink has settled. Otherwise they would be skipped.
#[tokio::test]
async fn events_after_a_lost_end_are_delivered() {
    let folder = folder();
    let config = config(&folder);
    three_records(&config).await;
    assert_eq!(drain(&config).await.len(), 6);
    for segment in segments(&config) {
        fs::write(segment, "").unwrap();
    }
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 10, 12).await;
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, events(10, 12));
}

#[tokio::test]
async fn removed_segment_does_not_stop_the_others() {
    let folder = folder();
    let config = DiskConfig { max_bytes: 16 * 1000, ..config(&folder) };
    let transport = open(&config).await;
    let subscription = transport.subscribe("store").await.unwrap();
    for n in 0..10 {
        commit(&transport, n * 10, n * 10 + 10).await;
    }
    stop(transport, subscription).await;
    let all = segments(&config);
    assert!(all.len() > 3);
    fs::remove_file(&all[1]).unwrap();
    let lost = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u32>().unwrap();
    let expected = [events(0, lost(&all[1])), events(lost(&all[2]), 100)].concat();
    assert_eq!(drain(&config).await, expected);
}

#[tokio::test]
async fn damaged_cursors_redeliver_all_events() {
    let folder = folder();
    let config = config(&folder);
    three_records(&config).await;
    assert_eq!(drain(&config).await, events(0, 6));
    let cursors = fs::read_to_string(config.path.join("cursors")).unwrap();
    fs::write(config.path.join("cursors"), cursors.replace(":6", ":7")).unwrap();
    assert_eq!(drain(&config).await, events(0, 6));
}
