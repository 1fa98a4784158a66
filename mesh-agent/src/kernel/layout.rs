//! Whether what an earlier agent pinned fits this one. A pinned map is reused by its name alone, so
//! its shape is compared here before anything is loaded.

use std::{fs, io, os::fd::AsFd as _};

use aya_obj::Object;

use super::{pins::PinDir, programs::KernelError, tables::Tables};
use crate::sys::{self, bpf::MapShape};

/// Sets everything aside that was pinned under this layout's version if one of its maps has another
/// shape than ours. The running programs go on with the maps that they have, until ours are put in
/// their place.
///
/// # Errors
/// The object cannot be read, or the directory cannot be renamed.
pub(super) fn set_aside_misfits(object: &[u8], pins: &PinDir) -> Result<(), KernelError> {
    let object =
        Object::parse(object).map_err(|error| KernelError::Load(Box::new(error.into())))?;
    for name in Tables::NAMES {
        let map = object.maps.get(name).ok_or_else(|| KernelError::Missing(name.to_owned()))?;
        let ours = MapShape {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
        };
        let path = pins.map(name);
        let theirs = match sys::bpf::open_pinned(&path) {
            Ok(pinned) => sys::bpf::map_shape(pinned.as_fd()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(error),
        };
        match theirs {
            Ok(theirs) if theirs == ours => {}
            theirs => {
                tracing::warn!(
                    map = name,
                    ?theirs,
                    ?ours,
                    "a pinned map is not of this version; all that is pinned is replaced"
                );
                let aside = |source| KernelError::Link { path: path.clone(), source };
                return pins.set_aside().map_err(aside);
            }
        }
    }
    Ok(())
}

/// Logs which layouts of other versions there are: they are replaced link by link, without a gap.
pub(super) fn report_others(pins: &PinDir) {
    for other in pins.others() {
        let links = fs::read_dir(other.join("links")).map_or(0, Iterator::count);
        tracing::warn!(layout = %other.display(), links, "an agent of another version has pinned this; it is replaced");
    }
}
