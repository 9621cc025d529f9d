//! Attacks on enrolment: claims that are not true, requests that wish for more, and what they may not cost.

use std::net::IpAddr;

use rcgen::{CertificateParams, KeyPair, SanType};
use tonic::Code;
use vp_coordinator::api::limits::STRANGERS;
use vp_proto::v1::{EnrollRequest, EnrollResponse, EventsRequest, operators_client::OperatorsClient};
use vp_tests::cell::aws::Instance;
use vp_tests::cell::machine::{Machine, answered, submit};
use vp_tests::cell::{self, GROUP};
use vp_trust::request::Fresh;
use vp_trust::{Certificate, Name, Rank};

use super::{attack, cell, honest, refused};

/// Reasons that are given to strangers: what anybody can provoke without being of our account.
const STRANGERS_REASONS: [&str; 6] = [
    "signature is not this region's",
    "the identity document",
    "EC2 knows no instance",
    "it names the cluster",
    "the certificate request",
    "the call comes from",
];

/// Refused joins as an operator reads of them: whose, and why.
async fn refused_joins() -> Vec<(String, String)> {
    let viewer = cell().operator(Rank::Viewer).unwrap();
    let leader = cell().leader_now().await.unwrap();
    let channel = cell::dial(&cell().way(leader, cell().elsewhere(14), Some(&viewer)).unwrap()).await.unwrap();
    let mut events = OperatorsClient::new(channel).events(EventsRequest { after_revision: 0, follow: false }).await.unwrap().into_inner();
    let mut joins = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        if event.kind == "join refused" {
            joins.push((event.subject, event.detail));
        }
    }
    joins
}

/// Submits a claim of `machine`, changed, while the call back is answered truly.
async fn claim(machine: &Machine, change: impl FnOnce(&mut EnrollRequest)) -> Result<EnrollResponse, tonic::Status> {
    let fresh = Fresh::new(&cell().name(&machine.id)).unwrap();
    let mut claim = machine.claim(fresh.der());
    change(&mut claim);
    answered(machine.address, &fresh, cell(), submit(cell(), machine.address, claim)).await.unwrap()
}

fn request(name: &Name, key: &KeyPair) -> Vec<u8> {
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = vec![SanType::URI(name.to_string().try_into().unwrap())];
    parameters.serialize_request(key).unwrap().der().to_vec()
}

#[test]
fn an_honest_claim_is_granted() {
    attack(async {
        let machine = Machine::launch(cell(), "i-honest").unwrap();
        let granted = claim(&machine, |_| {}).await.unwrap();
        let read = Certificate::read(&granted.certificates[0]).unwrap();
        assert_eq!((read.name, read.address), (cell().name("i-honest"), Some(machine.address)));
    });
}

#[test]
fn a_document_signed_by_another_regions_key_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-forged").unwrap();
        let forged = cell().document(&machine.id, machine.address, "us-east-1", true).unwrap();
        refused(claim(&machine, |claim| (claim.identity_document, claim.identity_signature) = forged).await, Code::PermissionDenied, "signature");
    });
}

#[test]
fn a_document_changed_after_it_was_signed_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-changed").unwrap();
        refused(claim(&machine, |claim| claim.identity_document.push(' ')).await, Code::PermissionDenied, "signature");
    });
}

#[test]
fn a_document_without_a_signature_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-unsigned").unwrap();
        for signature in ["", "AAAA", "%%%", "\0"] {
            refused(claim(&machine, |claim| claim.identity_signature = signature.to_owned()).await, Code::PermissionDenied, "signature");
        }
    });
}

#[test]
fn a_true_document_of_another_region_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-far").unwrap();
        let far = cell().document(&machine.id, machine.address, "eu-west-1", false).unwrap();
        refused(claim(&machine, |claim| (claim.identity_document, claim.identity_signature) = far).await, Code::PermissionDenied, "eu-west-1");
    });
}

#[test]
fn a_true_document_of_another_instance_is_refused() {
    attack(async {
        let (machine, other) = (Machine::launch(cell(), "i-foreign").unwrap(), Machine::launch(cell(), "i-foreign2").unwrap());
        refused(claim(&machine, |claim| (claim.identity_document, claim.identity_signature) = other.identity).await, Code::PermissionDenied, "i-foreign2");
    });
}

#[test]
fn a_replayed_document_is_refused_when_nobody_answers_at_the_instances_address() {
    attack(async {
        let victim = Machine::launch(cell(), "i-replayed").unwrap();
        let fresh = Fresh::new(&cell().name(&victim.id)).unwrap();
        let thief = cell().elsewhere(10);
        // The thief answers, but where it is.
        let answer = answered(thief, &fresh, cell(), submit(cell(), victim.address, victim.claim(fresh.der()))).await.unwrap();
        refused(answer, Code::PermissionDenied, "nobody answers");
    });
}

#[test]
fn a_replayed_document_from_another_address_takes_nobodys_turn() {
    attack(async {
        let victim = Machine::launch(cell(), "i-turn").unwrap();
        let thiefs = Fresh::new(&cell().name(&victim.id)).unwrap();
        let replay = async |host| {
            for _ in 0..20 {
                refused(submit(cell(), cell().elsewhere(host), victim.claim(thiefs.der())).await, Code::PermissionDenied, "the call comes from");
            }
        };
        tokio::join!(replay(12), replay(13));
        assert_eq!(cell().aws.asked(&victim.id), 0, "EC2 was asked for a stranger");
        let (own, ..) = tokio::join!(victim.enrol(cell()), replay(12), replay(13));
        own.unwrap();
    });
}

#[test]
fn a_replayed_document_is_refused_when_the_true_agent_answers() {
    attack(async {
        let victim = Machine::launch(cell(), "i-replayed2").unwrap();
        let (true_one, thiefs) = (Fresh::new(&cell().name(&victim.id)).unwrap(), Fresh::new(&cell().name(&victim.id)).unwrap());
        let answer = answered(victim.address, &true_one, cell(), submit(cell(), victim.address, victim.claim(thiefs.der()))).await.unwrap();
        refused(answer, Code::PermissionDenied, "does not hold the request's key");
    });
}

#[test]
fn a_captured_request_gives_a_certificate_to_its_maker_alone() {
    attack(async {
        let victim = Machine::launch(cell(), "i-captured").unwrap();
        let fresh = Fresh::new(&cell().name(&victim.id)).unwrap();
        // All that went over the wire, sent again while the victim answers: what comes back fits the victim's key.
        let answer = answered(victim.address, &fresh, cell(), submit(cell(), victim.address, victim.claim(fresh.der()))).await.unwrap().unwrap();
        let chain = answer.certificates.into_iter().map(Into::into).collect();
        let thief = vp_trust::Credentials::new(chain, KeyPair::generate().unwrap().serialized_der());
        assert!(vp_trust::tls::client(cell().authority.hash(), Some(&thief)).is_err(), "without its key it is worth nothing");
    });
}

#[test]
fn a_document_of_a_terminated_instance_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-dead").unwrap();
        for state in ["terminated", "shutting-down", "stopped", "stopping"] {
            cell().aws.launch(&machine.id, Instance { address: machine.address, state, group: GROUP.to_owned() });
            refused(claim(&machine, |_| {}).await, Code::PermissionDenied, "not running");
        }
    });
}

#[test]
fn an_instance_that_ec2_does_not_know_is_refused() {
    attack(async {
        let known = Machine::launch(cell(), "i-known").unwrap();
        let identity = cell().document("i-unknown", known.address, "us-east-1", false).unwrap();
        let machine = Machine { id: "i-unknown".to_owned(), identity, ..known };
        refused(claim(&machine, |_| {}).await, Code::PermissionDenied, "knows no instance");
    });
}

#[test]
fn an_instance_of_another_group_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-others").unwrap();
        cell().aws.launch(&machine.id, Instance { address: machine.address, state: "running", group: "somebody-elses".to_owned() });
        refused(claim(&machine, |_| {}).await, Code::PermissionDenied, "somebody-elses");
    });
}

#[test]
fn a_claim_to_be_called_back_elsewhere_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-elsewhere").unwrap();
        let elsewhere: IpAddr = cell().elsewhere(13);
        refused(claim(&machine, |claim| claim.address = elsewhere.to_string()).await, Code::PermissionDenied, "an instance at");
        // Nor when the document says so too, and EC2 does not.
        let moved = cell().document(&machine.id, elsewhere, "us-east-1", false).unwrap();
        let fresh = Fresh::new(&cell().name(&machine.id)).unwrap();
        let claim = EnrollRequest { address: elsewhere.to_string(), identity_document: moved.0, identity_signature: moved.1, ..machine.claim(fresh.der()) };
        let answer = answered(elsewhere, &fresh, cell(), submit(cell(), elsewhere, claim)).await.unwrap();
        refused(answer, Code::PermissionDenied, "EC2 says the address");
    });
}

#[test]
fn a_claim_for_another_cluster_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-cluster").unwrap();
        refused(claim(&machine, |claim| claim.cluster = "prod".to_owned()).await, Code::PermissionDenied, "prod");
    });
}

#[test]
fn a_request_for_another_instances_certificate_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-wish").unwrap();
        let wish = Fresh::new(&cell().name("i-victim")).unwrap();
        refused(claim(&machine, |claim| claim.certificate_request = wish.der().to_vec()).await, Code::PermissionDenied, "i-victim");
    });
}

#[test]
fn a_request_for_a_coordinators_or_an_operators_certificate_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-upstart").unwrap();
        for name in [Name::coordinator(cell::CLUSTER, 1), Name::operator(cell::CLUSTER, Rank::Admin, "i-upstart"), Name::node("prod", "i-upstart")] {
            let wish = Fresh::new(&name).unwrap();
            refused(claim(&machine, |claim| claim.certificate_request = wish.der().to_vec()).await, Code::PermissionDenied, "request is for");
        }
    });
}

#[test]
fn a_request_that_its_own_key_has_not_signed_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-unowned").unwrap();
        let spoil = |claim: &mut EnrollRequest| {
            let last = claim.certificate_request.len() - 1;
            claim.certificate_request[last] ^= 1;
        };
        refused(claim(&machine, spoil).await, Code::PermissionDenied, "request");
    });
}

#[test]
fn a_request_with_another_kind_of_key_is_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-key").unwrap();
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let wish = request(&cell().name("i-key"), &KeyPair::generate_for(algorithm).unwrap());
            refused(claim(&machine, |claim| claim.certificate_request = wish).await, Code::PermissionDenied, "P-256");
        }
    });
}

#[test]
fn garbage_for_a_request_and_one_that_is_too_long_are_refused() {
    attack(async {
        let machine = Machine::launch(cell(), "i-garbage").unwrap();
        for wish in [vec![], vec![0xFF; 300], vec![0x30; 5000], vec![0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF]] {
            refused(claim(&machine, |claim| claim.certificate_request = wish).await, Code::PermissionDenied, "request");
        }
        let answer = claim(&machine, |claim| claim.identity_document = "x".repeat(1 << 20)).await;
        refused(answer, Code::OutOfRange, "");
    });
}

#[test]
fn wishes_beside_the_name_are_not_granted() {
    attack(async {
        let machine = Machine::launch(cell(), "i-wishes").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = vec![SanType::URI(cell().name("i-wishes").to_string().try_into().unwrap())];
        parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        parameters.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let wish = parameters.serialize_request(&key).unwrap().der().to_vec();
        // Nobody answers for that key here: the refusal is the proof's, after the request was read.
        refused(claim(&machine, |claim| claim.certificate_request = wish).await, Code::PermissionDenied, "does not hold");
    });
}

#[test]
fn strangers_cost_no_call_to_ec2_and_few_lines_in_the_log() {
    attack(async {
        let machine = Machine::launch(cell(), "i-noise").unwrap();
        for number in 0..30 {
            let answer = claim(&machine, |claim| {
                claim.instance_id = format!("i-noise{number}");
                claim.certificate_request = Fresh::new(&cell().name(&format!("i-noise{number}"))).unwrap().der().to_vec();
            });
            assert!(answer.await.is_err());
        }
        assert_eq!(cell().aws.asked("i-noise"), 0);
        let joins = refused_joins().await;
        let noted = joins.iter().filter(|(subject, _)| subject.starts_with("i-noise")).count();
        assert!(noted <= STRANGERS.burst as usize, "{noted} events");
        // Of thirty the first few are kept, unless those of other tests were before them.
        let strangers = joins.iter().filter(|(_, reason)| STRANGERS_REASONS.iter().any(|known| reason.contains(known))).count();
        assert!(strangers >= 1, "nobody would see that somebody knocks: {joins:?}");
    });
}

#[test]
fn a_refusal_of_an_instance_of_our_account_is_an_event_with_its_reason() {
    attack(async {
        let machine = Machine::launch(cell(), "i-told-of").unwrap();
        cell().aws.launch(&machine.id, Instance { address: machine.address, state: "stopped", group: GROUP.to_owned() });
        let refusal = claim(&machine, |_| {}).await.unwrap_err();
        assert_eq!(refusal.code(), Code::PermissionDenied, "{refusal:?}");
        let joins = refused_joins().await;
        let told: Vec<_> = joins.iter().filter(|(subject, _)| *subject == machine.id).map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(told, [refusal.message()]);
        assert!(refusal.message().contains("stopped, not running"), "{refusal:?}");
    });
}

#[test]
fn one_instance_cannot_have_two_enrolments_judged_at_once() {
    attack(async {
        let machine = Machine::launch(cell(), "i-twice").unwrap();
        let fresh = Fresh::new(&cell().name("i-twice")).unwrap();
        // Nobody answers the call back at all, but the port is taken: each judgement takes its full time.
        let _silent = tokio::net::TcpListener::bind((machine.address, vp_trust::proof::PORT)).await.unwrap();
        let ask = || submit(cell(), machine.address, machine.claim(fresh.der()));
        let (first, second) = tokio::join!(ask(), ask());
        let codes = [first.unwrap_err().code(), second.unwrap_err().code()];
        assert!(codes.contains(&Code::Unavailable) && codes.contains(&Code::PermissionDenied), "{codes:?}");
        let _ = honest("i-after").await;
    });
}

#[test]
fn strangers_are_served_by_threads_that_give_way() {
    for (coordinator, threads) in cell().threads().into_iter().enumerate() {
        let nice = |name: &str| threads.get(name).copied().unwrap_or_else(|| panic!("{coordinator} has no thread {name}: {threads:?}"));
        assert_eq!((nice("door"), nice("enrolment")), (5, 5), "{threads:?}");
        assert_eq!((nice("control"), nice("cloud")), (0, 0), "{threads:?}");
    }
}
