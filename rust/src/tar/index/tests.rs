use super::*;

fn record(path: &[u8], what: What) -> Record {
    Record {
        path: path.to_vec(),
        what,
        implied: path == b"a",
        hides: Hides::Name,
        sparse: false,
        mode: 0o4755,
        uid: 7,
        gid: 8,
        mtime: Time { seconds: -5, nanoseconds: 9 },
        device: (1, 3),
        size: 11,
        offset: (what == What::Foreign).then_some(1536),
        blake3: (what == What::Foreign).then_some([7; 32]),
        place: Place::Tree,
        extent: None,
        link: b"to".to_vec(),
        xattrs: vec![(b"user.x".to_vec(), b"\0\xff".to_vec())],
    }
}

#[test]
fn an_index_comes_back_as_it_was() {
    let records =
        vec![record(b"", What::Directory), record(b"a", What::Directory), record(b"a/b", What::Foreign)];
    let read = decode(&encode(&records, None, None), "test").expect("whole");
    assert_eq!(read.records, records);
    assert_eq!((read.implied, read.foreign_links), (1, 1));
}

#[test]
fn an_index_says_where_files_are() {
    let mut records = vec![record(b"", What::Directory)];
    let places = [Place::Tree, Place::Object([1; 32]), Place::Object([7; 32]), Place::Packed(4097)];
    for (name, place) in (b'a'..).zip(places) {
        for blake3 in [None, Some([7; 32])] {
            // An object's own name is its digest.
            if matches!((place, blake3), (Place::Object(key), Some(digest)) if key != digest) {
                continue;
            }
            let extent = blake3.map(|_| Extent { start: 4096, shared: name != b'a' });
            records.push(Record { blake3, place, extent, ..record(&[name, b'x'], What::File) });
        }
    }
    let read = decode(&encode(&records, Some(&[9; 32]), Some(8192)), "test").expect("whole");
    assert_eq!((read.records, read.pack, read.blocks), (records, Some([9; 32]), Some(8192)));
}

#[test]
fn the_first_bytes_of_an_index_say_which_forms_there_are() {
    let records = [record(b"", What::Directory)];
    for (pack, blocks) in [(None, None), (Some([9; 32]), None), (None, Some(0)), (Some([9; 32]), Some(8192))]
    {
        let mut bytes = encode(&records, pack.as_ref(), blocks);
        assert_eq!(read_forms(&bytes[..FORMS_BYTES]), Some((pack.is_some(), blocks.is_some())));
        assert_eq!(read_forms(&bytes[..FORMS_BYTES - 1]), None);
        bytes[MAGIC.len() + 4] &= !4; // as indexes were once
        assert_eq!(read_forms(&bytes), None);
        bytes[MAGIC.len()] = 5; // as they may come to be
        bytes[MAGIC.len() + 4] |= 4;
        assert_eq!(read_forms(&bytes), None);
    }
}

#[test]
fn an_index_of_the_first_version_is_read_without_offsets() {
    let mut records = vec![record(b"", What::Directory), record(b"b", What::Directory)];
    let bytes = encode(&records, None, None);
    let mut old = bytes[..bytes.len() - CHECKSUM_BYTES].to_vec();
    old[MAGIC.len()] = 1;
    // The second record is cut first: what is before it stays where it is.
    for at in [HEADER_BYTES + record_bytes(&records[0]), HEADER_BYTES] {
        old.drain(at + 44..at + 52);
    }
    old.extend_from_slice(blake3::hash(&old.clone()).as_bytes());
    for record in &mut records {
        record.offset = None;
    }
    assert_eq!(decode(&old, "test").expect("whole").records, records);
}

fn record_bytes(record: &Record) -> usize {
    let mut out = Vec::new();
    encode_record(record, &mut out);
    out.len()
}

#[test]
fn an_index_of_a_version_to_come_is_refused_by_its_number() {
    let bytes = encode(&[record(b"", What::Directory)], None, None);
    let mut newer = bytes[..bytes.len() - CHECKSUM_BYTES].to_vec();
    newer[MAGIC.len()] = 5;
    newer.extend_from_slice(blake3::hash(&newer.clone()).as_bytes());
    let refused = decode(&newer, "test").expect_err("refused").to_string();
    assert!(refused.contains("has version 5, this pyctrd reads up to 4"), "{refused}");
}

#[test]
fn a_layer_gets_the_form_that_its_other_index_has() {
    let one =
        vec![record(b"", What::Directory), Record { place: Place::Packed(7), ..record(b"b", What::File) }];
    let mut other = one.clone();
    let extent = Some(Extent { start: 4096, shared: false });
    (other[1].place, other[1].extent) = (Place::Tree, extent);
    let known = decode(&encode(&one, Some(&[9; 32]), None), "test").expect("whole");
    let (mut pack, mut blocks) = (None, Some(8192));
    assert!(join(&mut other, &mut pack, &mut blocks, &known));
    assert_eq!((pack, blocks), (Some([9; 32]), Some(8192)));
    assert_eq!((other[1].place, other[1].extent), (Place::Packed(7), extent));
    other[1].size += 1;
    assert!(!join(&mut other, &mut None, &mut blocks, &known), "of another layer");
}

#[test]
fn any_damage_is_noticed() {
    let bytes = encode(&[record(b"", What::Directory)], None, None);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(decode(&damaged, "test").is_err(), "byte {at}");
        assert!(decode(&bytes[..at], "test").is_err(), "cut at {at}");
    }
}
