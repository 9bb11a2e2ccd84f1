//! Symbolic dimensions: integer polynomials over named symbols, in canonical form, so that two
//! dimensions are equal exactly when they print the same.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

/// An indivisible factor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Atom {
    Symbol(Arc<str>),
    /// Floor division that does not cancel.
    Floor(Dim, Dim),
    /// A size about which nothing is known; equal only to itself.
    Unknown(u64),
}

/// A dimension. Arithmetic saturates rather than overflows.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Arc<BTreeMap<Vec<Atom>, i64>>);

impl From<i64> for Dim {
    fn from(n: i64) -> Dim {
        Dim::build([(vec![], n)])
    }
}
impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::from(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl Dim {
    fn build(terms: impl IntoIterator<Item = (Vec<Atom>, i64)>) -> Dim {
        let mut map = BTreeMap::new();
        for (mut atoms, factor) in terms {
            atoms.sort();
            let entry: &mut i64 = map.entry(atoms).or_default();
            *entry = entry.saturating_add(factor);
        }
        map.retain(|_, f| *f != 0);
        Dim(Arc::new(map))
    }
    fn atom(atom: Atom) -> Dim {
        Dim::build([(vec![atom], 1)])
    }
    /// A named symbol such as `batch`.
    pub fn symbol(name: &str) -> Dim {
        Dim::atom(Atom::Symbol(name.into()))
    }
    /// The dimension that a text spells: sums of products of names and numbers as they print, such as
    /// `past + seq`. Any other text is the name of one symbol.
    pub fn parse(text: &str) -> Dim {
        let name = |s: &str| !s.is_empty() && !s.contains(|c: char| c.is_whitespace() || "()*/+".contains(c));
        let product = |text: &str| -> Option<Dim> {
            let factors = text.split('*').map(|f| match f.parse::<i64>() {
                Ok(n) => Some(Dim::from(n)),
                Err(_) => name(f).then(|| Dim::symbol(f)),
            });
            factors.collect::<Option<Vec<Dim>>>().map(|f| Dim::product(&f))
        };
        let sum = || -> Option<Dim> {
            let mut words = text.split(' ');
            let mut total = product(words.next()?)?;
            while let Some(sign) = words.next() {
                let term = product(words.next()?)?;
                total = match sign {
                    "+" => total + term,
                    "-" => total - term,
                    _ => return None,
                };
            }
            Some(total)
        };
        sum().unwrap_or_else(|| Dim::symbol(text))
    }
    /// A fresh size about which nothing is known; it equals only its own copies.
    pub fn unknown() -> Dim {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Dim::atom(Atom::Unknown(NEXT.fetch_add(1, Ordering::Relaxed)))
    }
    /// The number, where it is one.
    pub fn known(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get(&vec![]).copied(),
            _ => None,
        }
    }
    /// The number as a size, where it is one and not negative.
    pub fn size(&self) -> Option<usize> {
        usize::try_from(self.known()?).ok()
    }
    /// Whether this is exactly `n`.
    pub fn is(&self, n: i64) -> bool {
        self.known() == Some(n)
    }
    /// The symbol's name, where the dimension is one symbol.
    pub fn as_symbol(&self) -> Option<&str> {
        match self.0.iter().next() {
            Some((atoms, 1)) if self.0.len() == 1 && atoms.len() == 1 => match &atoms[0] {
                Atom::Symbol(s) => Some(s),
                _ => None,
            },
            _ => None,
        }
    }
    /// Floor division; exact where every term divides.
    pub fn floor_div(&self, by: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.known(), by.known())
            && b != 0
        {
            return Dim::from(a.div_euclid(b));
        }
        if by.is(1) {
            return self.clone();
        }
        if self == by {
            return Dim::from(1i64);
        }
        if by.0.len() == 1
            && let Some((atoms, factor)) = by.0.iter().next()
            && *factor != 0
        {
            let divided: Option<Vec<_>> = self
                .0
                .iter()
                .map(|(a, f)| {
                    let mut rest = a.clone();
                    for atom in atoms {
                        rest.remove(rest.iter().position(|x| x == atom)?);
                    }
                    (f % factor == 0).then_some((rest, f / factor))
                })
                .collect();
            if let Some(terms) = divided {
                return Dim::build(terms);
            }
        }
        Dim::atom(Atom::Floor(self.clone(), by.clone()))
    }
    /// Division rounded up.
    pub fn ceil_div(&self, by: &Dim) -> Dim {
        (self.clone() + by.clone() - Dim::from(1i64)).floor_div(by)
    }
    /// The value with symbols replaced by `bind`; `None` where one is not bound.
    pub fn eval(&self, bind: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        self.0.iter().try_fold(0i64, |sum, (atoms, factor)| {
            let product = atoms.iter().try_fold(*factor, |p, atom| {
                let v = match atom {
                    Atom::Symbol(s) => bind(s)?,
                    Atom::Unknown(_) => return None,
                    Atom::Floor(a, b) => {
                        let b = b.eval(bind)?;
                        if b == 0 {
                            return None;
                        }
                        a.eval(bind)?.div_euclid(b)
                    }
                };
                p.checked_mul(v)
            })?;
            sum.checked_add(product)
        })
    }
    /// Calls `see` for every symbol inside.
    pub fn symbols(&self, see: &mut dyn FnMut(&str)) {
        for atom in self.0.keys().flatten() {
            match atom {
                Atom::Symbol(s) => see(s),
                Atom::Floor(a, b) => {
                    a.symbols(see);
                    b.symbols(see);
                }
                Atom::Unknown(_) => {}
            }
        }
    }
    /// Whether an unknown size is inside.
    pub fn is_unknown(&self) -> bool {
        self.0.keys().flatten().any(|a| match a {
            Atom::Unknown(_) => true,
            Atom::Floor(a, b) => a.is_unknown() || b.is_unknown(),
            Atom::Symbol(_) => false,
        })
    }
    /// The product of dimensions.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::from(1i64), |p, d| p * d.clone())
    }
}

impl std::ops::Add for Dim {
    type Output = Dim;
    fn add(self, other: Dim) -> Dim {
        Dim::build(self.0.iter().chain(other.0.iter()).map(|(a, f)| (a.clone(), *f)))
    }
}
impl std::ops::Neg for Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        Dim::build(self.0.iter().map(|(a, f)| (a.clone(), f.saturating_neg())))
    }
}
impl std::ops::Sub for Dim {
    type Output = Dim;
    fn sub(self, other: Dim) -> Dim {
        self + -other
    }
}
impl std::ops::Mul for Dim {
    type Output = Dim;
    fn mul(self, other: Dim) -> Dim {
        let terms = self.0.iter().flat_map(|(a, f)| {
            other.0.iter().map(move |(b, g)| ([a.as_slice(), b.as_slice()].concat(), f.saturating_mul(*g)))
        });
        Dim::build(terms.collect::<Vec<_>>())
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("0");
        }
        // Symbols first, the constant last: `batch*seq + 1`.
        for (i, (atoms, factor)) in self.0.iter().rev().enumerate() {
            match (i, *factor < 0) {
                (0, true) => f.write_str("-")?,
                (0, false) => {}
                (_, true) => f.write_str(" - ")?,
                (_, false) => f.write_str(" + ")?,
            }
            let size = factor.unsigned_abs();
            if size != 1 || atoms.is_empty() {
                write!(f, "{size}")?;
            }
            for (k, atom) in atoms.iter().enumerate() {
                if k > 0 || size != 1 {
                    f.write_str("*")?;
                }
                match atom {
                    Atom::Symbol(s) => f.write_str(s)?,
                    Atom::Unknown(_) => f.write_str("?")?,
                    Atom::Floor(a, b) => write!(f, "floor(({a})/({b}))")?,
                }
            }
        }
        Ok(())
    }
}
impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_dimension_is_read_back_and_other_texts_are_names() {
        for text in ["batch", "seq + past", "batch*seq - 1", "2*n + 3", "x.0", "batch-size", "7"] {
            assert_eq!(Dim::parse(text).to_string(), text);
        }
        let sum = Dim::parse("past + seq");
        assert_eq!(sum, Dim::symbol("past") + Dim::symbol("seq"));
        for text in ["past + ", "a  b", "floor((a)/(2))", "a +b", "some size"] {
            assert_eq!(Dim::parse(text).as_symbol(), Some(text));
        }
        assert_eq!(Dim::parse("2*").as_symbol(), Some("2*"));
    }

    #[test]
    fn polynomials_are_canonical() {
        let (b, s) = (Dim::symbol("batch"), Dim::symbol("seq"));
        assert_eq!(b.clone() * s.clone(), s.clone() * b.clone());
        assert_eq!(
            (b.clone() * s.clone() * Dim::from(4i64)).floor_div(&(s.clone() * Dim::from(2i64))),
            b.clone() * Dim::from(2i64)
        );
        assert_eq!((b.clone() + Dim::from(1i64) - b.clone()).known(), Some(1));
        assert_eq!(b.floor_div(&Dim::from(2i64)).to_string(), "floor((batch)/(2))");
        assert_eq!((b.clone() * s).eval(&|n| Some(if n == "seq" { 7 } else { 3 })), Some(21));
        assert_ne!(Dim::unknown(), Dim::unknown());
    }
}
