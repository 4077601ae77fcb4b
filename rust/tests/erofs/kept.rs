//! Contents that are asked for when they are written: the same image as with contents in the tree.

use pyctrd_core::erofs::{Kind, Tree, write, write_with};

use super::{directory, file, plain};

#[test]
fn kept_contents_make_the_same_image() {
    let lengths = [0, 1, 100, 4000, 4095, 4096, 4097, 9000, 70_000];
    let contents: Vec<Vec<u8>> = (1..).zip(lengths).map(|(byte, length)| vec![byte; length]).collect();
    let (mut held, mut kept) = (Tree::new(directory()), Tree::new(directory()));
    let mut nodes = Vec::new();
    for content in &contents {
        let name = content.len().to_string().into_bytes();
        let id = held.add(file(content));
        held.link(held.root(), name.clone(), id);
        let id = kept.add(plain(Kind::Kept { size: content.len() as u64 }));
        kept.link(kept.root(), name, id);
        nodes.push(id);
    }
    let (mut one, mut other) = (Vec::new(), Vec::new());
    write(&held, &mut one).expect("written");
    let content = |id| contents[nodes.iter().position(|known| *known == id).expect("one of them")].clone();
    write_with(&kept, &mut other, |id| Ok(content(id))).expect("written");
    assert!(one == other);
    assert!(write_with(&kept, &mut Vec::new(), |_| Ok(vec![0; 5])).is_err(), "not as long as it should be");
    assert!(write(&kept, &mut Vec::new()).is_err(), "nobody has them");
}
