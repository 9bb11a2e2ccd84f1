//! Rank correlation (Spearman 1904), with mean ranks for ties.

/// Spearman's coefficient of two lists of one length; none where one of them is constant.
pub(super) fn spearman(a: &[f32], b: &[f32]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(&b) {
        ab += (x - mean_a) * (y - mean_b);
        aa += (x - mean_a).powi(2);
        bb += (y - mean_b).powi(2);
    }
    (aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt())
}

fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut out = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let mut end = start + 1;
        while end < order.len() && values[order[end]] == values[order[start]] {
            end += 1;
        }
        let rank = (start + end - 1) as f64 / 2.0;
        order[start..end].iter().for_each(|i| out[*i] = rank);
        start = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_counts_and_ties_share_their_rank() {
        assert_eq!(spearman(&[1., 2., 3.], &[10., 200., 3000.]), Some(1.0));
        assert_eq!(spearman(&[1., 2., 3.], &[3., 2., 1.]), Some(-1.0));
        assert_eq!(ranks(&[5., 1., 5., 2.]), [2.5, 0., 2.5, 1.]);
        assert!(spearman(&[1., 1.], &[1., 2.]).is_none());
        // By hand: ranks 0, 1.5, 1.5, 3, 4 and 0, 1, 3, 2, 4 about their mean 2.
        let rho = spearman(&[1., 2., 2., 3., 4.], &[1., 2., 3., 2.5, 4.]).unwrap();
        assert!((rho - 8.0 / 95f64.sqrt()).abs() < 1e-12, "{rho}");
    }
}
