//! Tests of paths, numbers and lifetimes of nodes.

use super::*;

const FILE: u32 = 0o100_000;

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn add(nodes: &mut Nodes, parent: u64, text: &str, ino: u32, kind: u32) -> u64 {
    let node = nodes.create(FileIdentity { ino, kind });
    nodes.bind(parent, name(text), node);
    nodes.looked_up(node);
    node
}

fn path(nodes: &Nodes, node: u64) -> String {
    String::from_utf8(nodes.path(node).unwrap()).unwrap()
}

#[test]
fn paths_follow_a_renamed_directory() {
    let mut nodes = Nodes::new();
    let dir = add(&mut nodes, ROOT, "dir", 10, S_IFDIR);
    let file = add(&mut nodes, dir, "file", 11, FILE);
    assert_eq!(path(&nodes, ROOT), "/");
    assert_eq!(path(&nodes, file), "/dir/file");
    nodes.renamed((ROOT, name("dir")), (ROOT, name("moved")), false);
    assert_eq!(path(&nodes, file), "/moved/file");
    assert_eq!(nodes.path_of(dir, name("x")).unwrap(), b"/moved/x");
    assert_eq!(nodes.path_of(ROOT, name("x")).unwrap(), b"/x");
}

#[test]
fn a_node_has_the_servers_inode_number_and_another_if_that_is_taken() {
    let mut nodes = Nodes::new();
    assert_eq!(add(&mut nodes, ROOT, "a", 77, FILE), 77);
    let other = add(&mut nodes, ROOT, "b", 77, FILE);
    assert_eq!(other & 0xffff_ffff, 77);
    assert!(other > 0xffff_ffff);
    // No other file gets the root's number.
    assert!(add(&mut nodes, ROOT, "c", 1, FILE) > 0xffff_ffff);
    assert!(add(&mut nodes, ROOT, "d", 0, FILE) > 0xffff_ffff);
}

#[test]
fn a_forgotten_node_is_removed_and_its_number_is_free() {
    let mut nodes = Nodes::new();
    let file = add(&mut nodes, ROOT, "file", 5, FILE);
    nodes.looked_up(file);
    nodes.forget(file, 1);
    assert_eq!(nodes.len(), 2);
    nodes.forget(file, 1);
    assert_eq!((nodes.len(), nodes.child(ROOT, name("file"))), (1, None));
    assert_eq!(add(&mut nodes, ROOT, "other", 5, FILE), 5);
}

#[test]
fn a_directory_stays_while_a_path_needs_it() {
    let mut nodes = Nodes::new();
    let dir = add(&mut nodes, ROOT, "dir", 10, S_IFDIR);
    let file = add(&mut nodes, dir, "file", 11, FILE);
    nodes.forget(dir, 1);
    assert_eq!(path(&nodes, file), "/dir/file");
    nodes.forget(file, 1);
    assert_eq!(nodes.len(), 1);
}

#[test]
fn an_open_node_outlives_its_name() {
    let mut nodes = Nodes::new();
    let file = add(&mut nodes, ROOT, "file", 5, FILE);
    nodes.opened(file);
    nodes.unbind(ROOT, name("file"));
    nodes.forget(file, 1);
    assert_eq!(nodes.path(file), Err(PathError::Unnamed));
    nodes.closed(file);
    assert_eq!(nodes.path(file), Err(PathError::Unknown));
}

#[test]
fn a_second_name_is_used_when_the_first_is_gone() {
    let mut nodes = Nodes::new();
    let file = add(&mut nodes, ROOT, "one", 5, FILE);
    nodes.bind(ROOT, name("two"), file);
    let identity = FileIdentity { ino: 5, kind: FILE };
    assert_eq!(nodes.candidate(identity, 0), Some(file));
    nodes.set_mark(file, 7);
    assert_eq!(nodes.candidate(identity, 0), Some(file));
    assert_eq!(nodes.candidate(identity, 7), Some(file));
    assert_eq!(nodes.candidate(identity, 8), None, "a later file");
    nodes.unbind(ROOT, name("one"));
    assert_eq!(path(&nodes, file), "/two");
}

#[test]
fn a_rename_onto_a_file_leaves_that_file_nameless() {
    let mut nodes = Nodes::new();
    let one = add(&mut nodes, ROOT, "one", 5, FILE);
    let two = add(&mut nodes, ROOT, "two", 6, FILE);
    nodes.renamed((ROOT, name("one")), (ROOT, name("two")), false);
    assert_eq!(path(&nodes, one), "/two");
    assert_eq!(nodes.path(two), Err(PathError::Unnamed));
    assert_eq!(nodes.child(ROOT, name("one")), None);
}

#[test]
fn an_exchange_swaps_the_names() {
    let mut nodes = Nodes::new();
    let dir = add(&mut nodes, ROOT, "dir", 4, S_IFDIR);
    let one = add(&mut nodes, dir, "one", 5, FILE);
    let two = add(&mut nodes, ROOT, "two", 6, FILE);
    nodes.forget(dir, 1);
    nodes.renamed((dir, name("one")), (ROOT, name("two")), true);
    assert_eq!(
        (path(&nodes, one), path(&nodes, two)),
        ("/two".into(), "/dir/one".into())
    );
}

#[test]
fn a_path_longer_than_the_protocol_carries_is_refused() {
    let mut nodes = Nodes::new();
    let long = "n".repeat(250);
    let mut at = ROOT;
    for ino in 10..26 {
        at = add(&mut nodes, at, &long, ino, S_IFDIR);
    }
    // 16 names with their slashes have 4016 bytes.
    assert_eq!(nodes.path(at).map(|path| path.len()), Ok(4016));
    assert_eq!(
        nodes
            .path_of(at, name(&"x".repeat(78)))
            .map(|path| path.len()),
        Ok(4095)
    );
    assert_eq!(
        nodes.path_of(at, name(&"x".repeat(79))),
        Err(PathError::TooLong)
    );
    let deeper = add(&mut nodes, at, &long, 99, S_IFDIR);
    assert_eq!(nodes.path(deeper), Err(PathError::TooLong));
}
