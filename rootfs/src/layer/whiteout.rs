//! Whiteout names (OCI image-spec, layer.md "Whiteouts").

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS's own files, which old Docker layers carry in their root.
const META_PREFIX: &[u8] = b".wh..wh.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whiteout<'n> {
    /// Not a whiteout.
    None,
    /// Nothing below this layer is visible in the directory.
    Opaque,
    /// This name of the layers below is gone.
    Of(&'n [u8]),
    /// AUFS's book-keeping: to be skipped.
    AufsMeta,
    Malformed,
}

/// Classifies a cleaned path.
pub(super) fn classify<'n>(names: &[&'n [u8]]) -> Whiteout<'n> {
    let Some((last, parents)) = names.split_last() else { return Whiteout::None };
    if names[0].starts_with(META_PREFIX) && names[0] != OPAQUE {
        return Whiteout::AufsMeta;
    }
    if parents.iter().any(|name| name.starts_with(PREFIX)) {
        return Whiteout::Malformed;
    }
    if *last == OPAQUE {
        return Whiteout::Opaque;
    }
    match last.strip_prefix(PREFIX) {
        None => Whiteout::None,
        Some(b"" | b"." | b"..") => Whiteout::Malformed,
        Some(hidden) if hidden.starts_with(PREFIX) => Whiteout::Malformed,
        Some(hidden) => Whiteout::Of(hidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_classified() {
        let classify = |path: &'static str| {
            let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
            classify(&names)
        };
        assert_eq!(classify("a/b"), Whiteout::None);
        assert_eq!(classify("a/.wh.b"), Whiteout::Of(b"b"));
        assert_eq!(classify("a/.wh...."), Whiteout::Of(b"..."));
        assert_eq!(classify(".wh..wh..opq"), Whiteout::Opaque);
        assert_eq!(classify("a/.wh..wh..opq"), Whiteout::Opaque);
        assert_eq!(classify(".wh..wh.plnk/x"), Whiteout::AufsMeta);
        assert_eq!(classify(".wh..wh.aufs"), Whiteout::AufsMeta);
        for bad in ["a/.wh.", "a/.wh..", "a/.wh...", ".wh.x/y", "a/.wh..wh.x", "a/.wh..wh..opq/x"] {
            assert_eq!(classify(bad), Whiteout::Malformed, "{bad}");
        }
    }
}
