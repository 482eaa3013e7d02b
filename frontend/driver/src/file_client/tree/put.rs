//! What has a name stays until what replaces it is complete.

use rustix::fs::FileType;

use super::super::error::Result;
use super::super::replace::temporary_name;
use super::copy::TreeCopy;
use super::{Item, Tree};

impl<S: Tree, T: Tree> TreeCopy<'_, S, T> {
    /// Has `make` make something with the name that it is called with, and gives that to `name`
    /// once it is complete: once it has the attributes of `like`, if they are preserved. `make`
    /// returns what it has made, or nothing for another name of a file. Regular files with data
    /// replace others by themselves ([`Tree::publish`]).
    pub(super) fn put(
        &self,
        directory: &T::File,
        name: &[u8],
        old: Option<&Item<T::File>>,
        like: Option<&Item<S::File>>,
        make: impl FnOnce(&[u8]) -> Result<Option<Item<T::File>>>,
    ) -> Result<()> {
        let complete = |made: Option<&Item<T::File>>| match (like, made) {
            (Some(like), Some(made)) => self.preserve(like, made),
            _ => Ok(()),
        };
        let Some(old) = old else {
            return complete(make(name)?.as_ref());
        };
        let temporary = temporary_name(0);
        let temporary = temporary.as_bytes();
        let made = make(temporary)?;
        let is_directory = |item: &Item<T::File>| item.kind() == FileType::Directory;
        let placed = complete(made.as_ref())
            .and_then(
                |()| match is_directory(old) || made.as_ref().is_some_and(is_directory) {
                    // No rename replaces one by the other.
                    true => self.to.remove(directory, name, old),
                    false => Ok(()),
                },
            )
            .and_then(|()| self.to.rename(directory, temporary, name));
        if placed.is_err() {
            // That error is on its way to the caller already.
            if let Ok(Some(left)) = self.to.child(directory, temporary) {
                let _ = self.to.remove(directory, temporary, &left);
            }
        }
        placed
    }
}
