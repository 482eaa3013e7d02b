//! How a wire structure is declared: each field with its offset, checked against the kernel's
//! layout when compiled.

/// Declares a `#[repr(C)]` structure with its C name, its size and the offset of every field.
///
/// The offsets are restated on purpose: a field of the wrong width moves its neighbours, and the
/// build fails. Implicit padding cannot occur, since deriving `IntoBytes` refuses it.
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        $name:ident = $c_name:literal, $size:literal bytes {
            $( $(#[$field_meta:meta])* $field:ident: $ty:ty => $offset:literal, )*
        }
    ) => {
        $(#[$meta])*
        #[doc = ""]
        #[doc = concat!("Source: `struct ", $c_name, "`, ", $size, " bytes.")]
        #[repr(C)]
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $( assert!(core::mem::offset_of!($name, $field) == $offset); )*
        };

        #[cfg(test)]
        impl $crate::wire::Layout for $name {
            const C_NAME: &'static str = $c_name;
            const SIZE: usize = $size;
            const FIELDS: &'static [(&'static str, usize)] =
                &[ $( (stringify!($field), $offset), )* ];
        }
    };
}

/// What a structure claims of its C counterpart, for the comparison with an installed header.
#[cfg(test)]
pub(crate) trait Layout {
    /// Name after `struct`.
    const C_NAME: &'static str;
    /// `sizeof`, in bytes.
    const SIZE: usize;
    /// Name and `offsetof` of each field.
    const FIELDS: &'static [(&'static str, usize)];
}
