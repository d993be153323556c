//! What there must be of faults. Whether each is caught takes a minute: `cargo xtask conformance
//! --faults`.

use std::collections::BTreeSet;

use ork_state_conformance::Rule;
use ork_state_conformance::model::Fault;

#[test]
fn there_are_faults_of_every_rule_and_no_two_of_one_name() {
    let faults = Fault::all();
    assert!(faults.len() >= 60, "{}", faults.len());
    let names: BTreeSet<&str> = faults.iter().map(|fault| fault.name).collect();
    assert_eq!(names.len(), faults.len());
    for rule in Rule::ALL {
        assert!(faults.iter().any(|fault| fault.rule == *rule), "no fault breaks {rule}");
    }
}
