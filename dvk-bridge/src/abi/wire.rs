//! Declares wire structures, with field offsets that the compiler checks.

#[cfg(target_endian = "big")]
compile_error!("DVK's structures are little-endian, and are used here as they lie in memory");

/// Declares a `#[repr(C)]` structure with its C name, its size and the offset of every field.
///
/// The offsets are repeated on purpose: a field of the wrong width moves its neighbours, and the
/// build fails. Deriving `IntoBytes` rejects implicit padding.
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        $vis:vis $name:ident = $c_name:literal, $size:literal bytes from $base:literal {
            $( $(#[$field_meta:meta])* $field:ident: $ty:ty => $offset:literal, )*
        }
    ) => {
        $(#[$meta])*
        #[doc = ""]
        #[doc = concat!("Source: `", $c_name, "`, ", $size, " bytes on i386.")]
        #[repr(C)]
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        $vis struct $name {
            $( $(#[$field_meta])* $vis $field: $ty, )*
        }

        impl Default for $name {
            /// All zero.
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            $( assert!(core::mem::offset_of!($name, $field) + $base == $offset); )*
        };
    };
}

pub(crate) use wire_struct;
