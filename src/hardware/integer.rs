//! What instruction sets do with products of 8-bit integers, and which of them ONNX Runtime's kernels use
//! for which signs of data and weight. From the dispatch of its kernel library (`onnxruntime/core/mlas/lib`:
//! `platform.cpp`, `qgemm.h`, `convsym.cpp`); the rows `sse4` and `avx2` were checked by running it on such
//! processors (`benches/quantisation/saturation.py`).

/// One instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegerSet {
    /// Its tag, as of [`super::Machine::isa`].
    pub name: &'static str,
    /// Other spellings in device profiles.
    pub aliases: &'static [&'static str],
    /// Sums of two products of unsigned data and signed weights are held in 16 bits and saturate.
    pub saturates: bool,
    /// How unsigned data and signed weights are multiplied.
    pub u8s8: &'static str,
    /// How unsigned data and unsigned weights are.
    pub u8u8: &'static str,
    /// How signed data and signed weights are.
    pub s8s8: &'static str,
    /// The fastest signs of data and weight.
    pub fastest: &'static str,
}

impl IntegerSet {
    /// Whether weights should keep a bit free (`reduce_range`).
    pub fn seven_bits(&self) -> bool {
        self.saturates
    }

    /// The row of a tag; none where it is not known.
    pub fn of(isa: &str) -> Option<&'static IntegerSet> {
        INTEGER_SETS.iter().find(|s| s.name == isa || s.aliases.contains(&isa))
    }
}

const MADD: &str = "pmaddwd, exact";
const GENERIC: &str = "no kernel of its own, exact and slow";

/// All of them, best first on each architecture.
pub const INTEGER_SETS: &[IntegerSet] = &[
    IntegerSet {
        name: "amx",
        aliases: &["amx_int8"],
        saturates: false,
        u8s8: "tdpbusd on tiles, exact",
        u8u8: "vpmaddwd, exact",
        s8s8: GENERIC,
        fastest: "u8 x s8",
    },
    IntegerSet {
        name: "avx512_vnni",
        aliases: &[],
        saturates: false,
        u8s8: "vpdpbusd, exact",
        u8u8: "vpmaddwd, exact",
        s8s8: GENERIC,
        fastest: "u8 x s8",
    },
    IntegerSet {
        name: "avx_vnni",
        aliases: &["avxvnni"],
        saturates: false,
        u8s8: "vpdpbusd, exact",
        u8u8: "vpmaddwd, exact",
        s8s8: GENERIC,
        fastest: "u8 x s8",
    },
    IntegerSet {
        name: "avx512",
        aliases: &["avx512f", "avx512bw"],
        saturates: true,
        u8s8: "vpmaddubsw, 16-bit sums of two saturate",
        u8u8: "vpmaddwd, exact",
        s8s8: GENERIC,
        fastest: "u8 x s8",
    },
    IntegerSet {
        name: "avx2",
        aliases: &[],
        saturates: true,
        u8s8: "vpmaddubsw, 16-bit sums of two saturate",
        u8u8: "vpmaddwd, exact",
        s8s8: GENERIC,
        fastest: "u8 x s8",
    },
    IntegerSet {
        name: "sse4",
        aliases: &[],
        saturates: false,
        u8s8: MADD,
        u8u8: MADD,
        s8s8: GENERIC,
        fastest: "u8 x s8 and u8 x u8 alike",
    },
    IntegerSet {
        name: "neon_i8mm",
        aliases: &["i8mm"],
        saturates: false,
        u8s8: "ummla, exact",
        u8u8: "ummla, exact",
        s8s8: "smmla, exact",
        fastest: "all alike",
    },
    IntegerSet {
        name: "neon_dot",
        aliases: &["neon_dotprod", "asimddp"],
        saturates: false,
        u8s8: "udot, exact",
        u8u8: "udot, exact",
        s8s8: "sdot, exact",
        fastest: "all alike; s8 x s8 in convolutions",
    },
    IntegerSet {
        name: "neon",
        aliases: &["asimd"],
        saturates: false,
        u8s8: "smull, exact for weights from -127 to 127",
        u8u8: "umull, exact",
        s8s8: "smull, exact for weights from -127 to 127",
        fastest: "s8 x s8 and u8 x s8",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    #[test]
    fn every_set_that_a_machine_or_a_profile_names_has_a_row() {
        for (tag, _) in super::super::machine::ISA {
            assert!(IntegerSet::of(tag).is_some(), "{tag}");
        }
        for device in super::super::Device::all(&crate::config::Paths::under(&std::env::temp_dir())).unwrap()
        {
            assert!(IntegerSet::of(&device.isa).is_some(), "{}", device.name);
        }
        let saturating: Vec<_> = INTEGER_SETS.iter().filter(|s| s.saturates).map(|s| s.name).collect();
        assert_eq!(saturating, ["avx512", "avx2"]);
        assert_eq!(IntegerSet::of("avx512bw").map(|s| s.name), Some("avx512"));
        assert!(IntegerSet::of("scalar").is_none());
    }

    #[test]
    fn the_documentation_has_the_table() {
        let mut table = String::new();
        for s in INTEGER_SETS {
            let seven = if s.seven_bits() { "yes" } else { "no" };
            writeln!(
                table,
                "| `{}` | {} | {} | {} | {} | {seven} |",
                s.name, s.u8s8, s.u8u8, s.s8s8, s.fastest
            )
            .unwrap();
        }
        let docs = include_str!("../../docs/quantisation.md");
        assert!(docs.contains(&table), "docs/quantisation.md, section Target instruction sets:\n{table}");
    }
}
