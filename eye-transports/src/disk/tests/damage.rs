//! What the disk has lost or damaged.

use super::*;

/// Every byte in turn, so that every field of a record is hit: the others come, and the bytes are set aside.
#[tokio::test]
async fn damage_costs_the_record_it_hits_and_no_other() {
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
        assert_eq!(drain(&config).await, [], "it is passed once");
    }
}

#[tokio::test]
async fn custody_tells_what_was_pending_at_the_start_and_what_is_missing() {
    let folder = folder();
    let config = config(&folder);
    let length = three_records(&config).await;
    let segment = segments(&config)[0].clone();
    let mut content = fs::read(&segment).unwrap();
    content[length + 40] ^= 0x10;
    fs::write(&segment, content).unwrap();
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    assert_eq!(custody(&transport), [6, 6, 6, 0], "nobody has looked yet");
    commit(&transport, 6, 7).await;
    let narrow = BatchLimits { max_events: 1, ..WIDE };
    let received = subscription.receive(narrow).await.unwrap().remove(0);
    assert_eq!((received.events, custody(&transport)), (events(0, 1), [7, 6, 7, 0]));
    received.ack.settle(Outcome::Delivered);
    assert_eq!(
        next(&mut *subscription, Outcome::Failed { reason: "away".into() }).await,
        [events(1, 2), events(4, 7)].concat()
    );
    assert_eq!(
        custody(&transport),
        [7, 6, 4, 2],
        "what is missing lies before the sink's place, and is pending no more"
    );
    next(&mut *subscription, Outcome::Delivered).await;
    transport.close();
    end(subscription).await;
    assert_eq!(custody(&transport), [7, 6, 0, 2]);
}

#[tokio::test]
async fn an_end_that_is_not_whole_is_set_aside_and_written_behind() {
    let folder = folder();
    let config = config(&folder);
    let length = three_records(&config).await;
    // The last segment is the one that a crash cuts.
    for empty in &segments(&config)[1..] {
        fs::remove_file(empty).unwrap();
    }
    let segment = &segments(&config)[0];
    fs::OpenOptions::new().write(true).open(segment).unwrap().set_len(length as u64 * 3 - 1).unwrap();
    let transport = open(&config).await;
    let mut subscription = transport.subscribe("store").await.unwrap();
    commit(&transport, 10, 12).await;
    assert_eq!(next(&mut *subscription, Outcome::Delivered).await, [events(0, 4), events(10, 12)].concat());
    let kept = config.path.join(format!("damaged/{:020}-{}.bin", 0, length * 2));
    assert_eq!(fs::metadata(kept).unwrap().len(), length as u64 - 1);
}

/// A write that was cut off, in a segment that has nothing else and so gets its name again.
#[tokio::test]
async fn an_end_that_cannot_be_set_aside_hides_nothing_that_comes_after_it() {
    let folder = folder();
    let config = config(&folder);
    fs::create_dir(&config.path).unwrap();
    fs::write(config.path.join(format!("{:020}.log", 0)), [0xFE; 30]).unwrap();
    fs::write(config.path.join("damaged"), "in the way").unwrap();
    let transport = open(&config).await;
    let mut reader = reader::Reader::new(transport.log.clone(), "store".to_owned(), 0);
    let mut ahead = VecDeque::new();
    reader.read(WIDE, &mut ahead).unwrap();
    commit(&transport, 0, 5).await;
    reader.read(WIDE, &mut ahead).unwrap();
    assert_eq!(ahead.into_iter().map(|(_, event)| event).collect::<Vec<_>>(), events(0, 5));
}

/// What comes after the end was damaged has numbers that no sink has seen, or it would be skipped.
#[tokio::test]
async fn what_follows_a_lost_end_is_delivered() {
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
async fn a_segment_that_is_gone_does_not_stop_the_others() {
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
async fn damaged_cursors_deliver_again_rather_than_lose() {
    let folder = folder();
    let config = config(&folder);
    three_records(&config).await;
    assert_eq!(drain(&config).await, events(0, 6));
    let cursors = fs::read_to_string(config.path.join("cursors")).unwrap();
    fs::write(config.path.join("cursors"), cursors.replace(":6", ":7")).unwrap();
    assert_eq!(drain(&config).await, events(0, 6));
}
