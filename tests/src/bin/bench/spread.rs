//! Several measurements of one thing: the middle, and how far they lie apart.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one measurement; without any, all is not-a-number.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share| at(&sorted, share);
        Self {
            median: at(0.5),
            lower_quartile: at(0.25),
            upper_quartile: at(0.75),
            min: at(0.0),
            max: at(1.0),
        }
    }
}

/// Between the two that are next to the place.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a place in a list of some dozens"
)]
fn at(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let (lower, upper) = (sorted.get(place.floor() as usize), sorted.get(place.ceil() as usize));
    match (lower, upper) {
        (Some(lower), Some(upper)) => lower + (upper - lower) * place.fract(),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0].into_iter());
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 4.0));
        assert_eq!((spread.lower_quartile, spread.upper_quartile), (1.75, 3.25));
        assert!(Spread::of([].into_iter()).median.is_nan());
    }
}
