//! Target `admin`: the input of the admin socket, and of its client.

use mesh_api::{Request, Response};

/// An accepted line is written as another line that is read in the same way.
pub(crate) fn admin(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(request) = serde_json::from_str::<Request>(line) {
        let again = serde_json::to_string(&request).unwrap_or_default();
        assert!(!again.contains('\n'), "two lines");
        assert_eq!(serde_json::from_str::<Request>(&again).ok(), Some(request));
    }
    if let Ok(response) = serde_json::from_str::<Response>(line) {
        let again = serde_json::to_string(&response).unwrap_or_default();
        assert!(!again.contains('\n'), "two lines");
        let Ok(read) = serde_json::from_str::<Response>(&again) else {
            panic!("{response:?} was written as {again} and cannot be read");
        };
        assert_eq!(format!("{read:?}"), format!("{response:?}"));
    }
}
