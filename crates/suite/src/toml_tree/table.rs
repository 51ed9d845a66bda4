//! The macros that make tables and choices.

/// Makes a table: the struct as typed by the user, its reader, its list of keys and its JSON Schema.
///
/// Every field is an `Option<Spanned<T>>`; `seen` tells a key that was wrong from one that is missing.
macro_rules! table {
    (
        $(#[doc = $table_doc:literal])*
        $name:ident is $noun:literal {
            $( $(#[doc = $doc:literal])* $key:literal $field:ident: $ty:ty = $default:literal, )*
        }
        $( not_yet { $( $later:literal: $why:literal, )* } )?
    ) => {
        $(#[doc = $table_doc])*
        #[derive(Clone, Debug, Default)]
        pub struct $name {
            /// Where it stands.
            pub span: std::ops::Range<usize>,
            /// The keys that are there, the wrong ones included.
            pub seen: std::collections::BTreeSet<&'static str>,
            $( $(#[doc = $doc])* pub $field: Option<toml::Spanned<$ty>>, )*
        }

        impl $crate::toml_tree::Table for $name {
            const NOUN: &'static str = $noun;

            fn keys() -> Vec<$crate::toml_tree::Key> {
                vec![ $( $crate::toml_tree::Key {
                    name: $key,
                    doc: [$($doc),*].map(str::trim).join(" "),
                    default: $default,
                    expected: <$ty as $crate::toml_tree::Value>::expected(),
                    schema: <$ty as $crate::toml_tree::Value>::schema(),
                }, )* ]
            }
        }

        impl $crate::toml_tree::Value for $name {
            fn expected() -> String {
                concat!("a table: ", $noun).into()
            }

            fn schema() -> serde_json::Value {
                $crate::toml_tree::table_schema::<Self>(&[$($table_doc),*].map(str::trim).join(" "))
            }

            fn read(value: &toml::Spanned<toml::de::DeValue<'_>>, walk: &mut $crate::toml_tree::Walk) -> Option<Self> {
                let toml::de::DeValue::Table(table) = value.get_ref() else {
                    walk.wrong_type(value, &Self::expected());
                    return None;
                };
                let outer = std::mem::take(&mut walk.key);
                let mut out = Self { span: value.span(), ..Self::default() };
                for (key, value) in table {
                    match key.get_ref().as_ref() {
                        $( $key => {
                            walk.key = $key.into();
                            out.seen.insert($key);
                            out.$field = <$ty as $crate::toml_tree::Value>::read_spanned(value, walk);
                        } )*
                        $( $( $later => {
                            out.seen.insert($later);
                            walk.error(key.span(), concat!("`", $later, "` is not supported yet: ", $why));
                        } )* )?
                        _ => walk.unknown_key(key, &[$($key),*], $noun),
                    }
                }
                walk.key = outer;
                Some(out)
            }
        }
    };
}

/// Makes values of enumerations that are written as one of a few words.
macro_rules! word_value {
    ($($name:ident),*) => { $(
        impl $crate::toml_tree::Value for $name {
            fn expected() -> String {
                $crate::toml_tree::one_of(<Self as belljar_guest_spec::Word>::words())
            }

            fn schema() -> serde_json::Value {
                let words: Vec<_> = <Self as belljar_guest_spec::Word>::words().collect();
                serde_json::json!({ "enum": words })
            }

            fn read(value: &toml::Spanned<toml::de::DeValue<'_>>, walk: &mut $crate::toml_tree::Walk) -> Option<Self> {
                use belljar_guest_spec::Word;
                $crate::toml_tree::read_text(value, walk, &Self::expected(), |text| {
                    Self::of(text).ok_or_else(|| $crate::toml_tree::no_such_word(text, Self::words()))
                })
            }
        }
    )* };
}

pub(crate) use {table, word_value};
