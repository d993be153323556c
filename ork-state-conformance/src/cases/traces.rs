use crate::case::case;
use crate::traces::{Histories, Traces, seed_of};

/// How many traces a case plays, and how long they are: what is worth its time in every run.
/// `--deep` plays them for as long as you like.
const SHORT: (u32, usize) = (6, 60);
const LONG: (u32, usize) = (2, 300);

case! { G7, g7_random_traces_are_answered_as_the_model_does(t, of: (u64, (u32, usize))) {
    let (number, (count, length)) = of;
    let traces = Traces { seed: seed_of(t.seed(), number), count, length, shrinks: t.shrinks() };
    traces.play(vec![t.shared_fixture()]).await?;
    Ok(())
}
    short => (0, SHORT),
    short_again => (1, SHORT),
    long => (2, LONG),
    long_again => (3, LONG),
}

case! { G1, g1_calls_at_the_same_time_have_an_order_that_explains_them(t, number: u64) {
    Histories::play(t.shared_fixture(), seed_of(t.seed(), number)).await?;
    Ok(())
}
    first => 10,
    second => 11,
    third => 12,
}
