//! Who may call what: one table, looked at before any service sees the request; and how often people and their tools may. What a caller may then do with its
//! own records is each service's to judge, and agents and coordinators have their bounds where their messages are read.

use std::{
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::{BoxFuture, Either};
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};
use vp_trust::{Call, Caller, Certificate, Rank, Who};

use super::limits::{OPERATOR_CALLS, Rationed};

/// The operators' calls and the least rank each takes: a viewer looks, an operator moves work about, an admin changes what the cluster is or takes all it
/// knows away (a snapshot holds everything). A call that is not listed takes an admin.
const OPERATORS: &[(&str, Rank)] = &[
    ("Status", Rank::Viewer),
    ("Plan", Rank::Viewer),
    ("Explain", Rank::Viewer),
    ("Events", Rank::Viewer),
    ("ShowBrake", Rank::Viewer),
    ("Drain", Rank::Operator),
    ("Cordon", Rank::Operator),
    ("MoveSlot", Rank::Operator),
    ("Scale", Rank::Operator),
    ("Apply", Rank::Admin),
    ("ReleaseBrake", Rank::Operator),
    ("DeclareGone", Rank::Admin),
    ("WantCoordinators", Rank::Admin),
    ("SaveSnapshot", Rank::Admin),
];

/// May `caller` call `path` (`/vp.v1.SERVICE/METHOD`)?
///
/// # Errors
/// No, and what would.
pub fn judge(path: &str, caller: Option<&Caller>) -> Result<(), Status> {
    let caller = caller.ok_or_else(|| Status::unauthenticated("this connection has no certificate"))?;
    let certificate = caller.certificate.as_ref().ok_or_else(|| Status::unauthenticated("this connection has no certificate"))?;
    at_its_own_address(caller, certificate)?;
    let who = &certificate.name.who;
    let mut parts = path.strip_prefix('/').unwrap_or_default().split('/');
    let (service, method) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match (service.strip_prefix("vp.v1.").unwrap_or_default(), who) {
        ("Agents", Who::Node { .. }) | ("Peers" | "Coordinators", Who::Coordinator { .. }) => Ok(()),
        ("Operators", Who::Operator { rank, .. }) => has_rank(method, *rank, who),
        ("Agents", _) => Err(refused(who, "an instance's")),
        ("Peers" | "Coordinators", _) => Err(refused(who, "a coordinator's")),
        ("Operators", _) => Err(refused(who, "an operator's")),
        // Nothing is served there; the answer to somebody with a certificate may say so.
        _ => Err(Status::unimplemented("no such service")),
    }
}

/// An instance's certificate is good from the instance's address: taken elsewhere it is worth nothing.
fn at_its_own_address(caller: &Caller, certificate: &Certificate) -> Result<(), Status> {
    match (&certificate.name.who, certificate.address) {
        (Who::Node { .. }, Some(address)) if address == caller.from => Ok(()),
        (Who::Node { .. }, _) => {
            Err(Status::permission_denied(format!("this certificate is {}'s, which does not call from {}", certificate.name.who, caller.from)))
        }
        _ => Ok(()),
    }
}

fn has_rank(method: &str, rank: Rank, who: &Who) -> Result<(), Status> {
    let least = OPERATORS.iter().find(|(name, _)| *name == method).map_or(Rank::Admin, |(_, least)| *least);
    if rank >= least {
        return Ok(());
    }
    let article = |rank| if rank == Rank::Viewer { "a" } else { "an" };
    Err(Status::permission_denied(format!(
        "your certificate is {who}'s: {} {rank} may not call {method}, {} {least} may; name such a one's folder with --certificate",
        article(rank),
        article(least)
    )))
}

fn refused(who: &Who, wanted: &str) -> Status {
    Status::permission_denied(format!("this certificate is {who}'s; {wanted} is needed"))
}

/// The operators' calls, rationed by the name and rank in their certificates.
type Calls = Rationed<String>;

/// May an operator call once more? Of others nothing is taken.
fn ration(calls: &Calls, caller: Option<&Caller>) -> Result<(), Status> {
    let who = caller.and_then(|caller| caller.certificate.as_ref()).map(|certificate| &certificate.name.who);
    match who {
        Some(who @ Who::Operator { .. }) if !calls.take(&who.to_string()) => Err(Status::resource_exhausted(format!(
            "{who} calls too often: {} calls a second are answered, and {} at once after a pause; try again in a second",
            OPERATOR_CALLS.per_hour / 3600,
            OPERATOR_CALLS.burst
        ))),
        _ => Ok(()),
    }
}

/// The table as a layer of the gRPC server.
#[derive(Clone, Copy)]
pub struct Admission;

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    /// Called once a server: its connections share what is counted.
    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, calls: Arc::new(Calls::new(OPERATOR_CALLS)) }
    }
}

/// What stands behind the table.
#[derive(Clone)]
pub struct Admitted<S> {
    inner: S,
    calls: Arc<Calls>,
}

impl<S, B> Service<http::Request<B>> for Admitted<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<BoxFuture<'static, Result<http::Response<Body>, S::Error>>, Ready<Result<http::Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let caller = request.extensions().get::<Caller>();
        match judge(request.uri().path(), caller).and_then(|()| ration(&self.calls, caller)) {
            Ok(()) => {
                let call = caller.map(Caller::call);
                Either::Left(Box::pin(counted(call, self.inner.call(request))))
            }
            Err(status) => {
                tracing::debug!(path = request.uri().path(), reason = status.message(), "call refused");
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}

/// `answer`, whose call is under way until its last byte is sent, or until nobody waits for it any more.
async fn counted<E>(call: Option<Call>, answer: impl Future<Output = Result<http::Response<Body>, E>>) -> Result<http::Response<Body>, E> {
    Ok(answer.await?.map(|body| Body::new(Answer { body, _call: call })))
}

/// What is sent back. Its call is over when it is dropped.
struct Answer {
    body: Body,
    _call: Option<Call>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::pending,
        net::{IpAddr, Ipv4Addr},
    };

    use http_body::Body as _;
    use tonic::Code;
    use vp_trust::Name;

    use super::*;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 1, 1, 20));

    fn caller(name: Name, address: Option<IpAddr>, from: IpAddr) -> Caller {
        Caller::new(Some(Certificate { name, serial: None, address, not_before: 0, not_after: 0 }), from)
    }

    fn operator(rank: Rank) -> Caller {
        caller(Name::operator("dev", rank, "ada"), None, HOME)
    }

    fn code(path: &str, caller: &Caller) -> Code {
        judge(path, Some(caller)).map_or_else(|status| status.code(), |()| Code::Ok)
    }

    #[test]
    fn everybody_has_a_service_of_their_own() {
        let node = caller(Name::node("dev", "i-1"), Some(HOME), HOME);
        let coordinator = caller(Name::coordinator("dev", 2), None, HOME);
        let admin = operator(Rank::Admin);
        for (path, allowed) in [
            ("/vp.v1.Agents/Session", 0),
            ("/vp.v1.Peers/Send", 1),
            ("/vp.v1.Peers/Identify", 1),
            ("/vp.v1.Coordinators/Join", 1),
            ("/vp.v1.Operators/Status", 2),
        ] {
            for (index, who) in [&node, &coordinator, &admin].into_iter().enumerate() {
                let wanted = if index == allowed { Code::Ok } else { Code::PermissionDenied };
                assert_eq!(code(path, who), wanted, "{path} by caller {index}");
            }
        }
    }

    #[test]
    fn nobody_calls_without_a_certificate_or_what_is_not_served() {
        let nameless = Caller::new(None, HOME);
        assert_eq!(code("/vp.v1.Operators/Status", &nameless), Code::Unauthenticated);
        assert_eq!(judge("/vp.v1.Operators/Status", None).unwrap_err().code(), Code::Unauthenticated);
        for path in [
            "/",
            "",
            "/vp.v1.Enrolment/Enroll",
            "/Operators/Status",
            "/vp.v2.Operators/Status",
            "/vp.v1./x",
            "//vp.v1.Operators/Status",
            "vp.v1.Operators/Status",
        ] {
            assert_eq!(code(path, &operator(Rank::Admin)), Code::Unimplemented, "{path}");
        }
    }

    #[test]
    fn a_viewer_looks_an_operator_changes_and_what_nobody_listed_is_the_admins() {
        let least = |rank, methods: &[&'static str]| methods.iter().map(|method| (*method, rank)).collect::<Vec<_>>();
        let table = [
            least(Rank::Viewer, &["Status", "Plan", "Explain", "Events", "ShowBrake"]),
            least(Rank::Operator, &["Drain", "Cordon", "MoveSlot", "Scale", "ReleaseBrake"]),
            least(Rank::Admin, &["Apply", "DeclareGone", "WantCoordinators", "SaveSnapshot", "Unheard"]),
        ];
        for (method, least) in table.concat() {
            for rank in Rank::ALL {
                let wanted = if rank >= least { Code::Ok } else { Code::PermissionDenied };
                assert_eq!(code(&format!("/vp.v1.Operators/{method}"), &operator(rank)), wanted, "{method} by {rank}");
            }
        }
        let said = judge("/vp.v1.Operators/Drain", Some(&operator(Rank::Viewer))).unwrap_err();
        assert!(said.message().contains("the viewer ada") && said.message().contains("--certificate"), "{}", said.message());
    }

    #[test]
    fn an_operator_that_calls_without_end_is_refused_and_nobody_else_is() {
        let calls = Calls::new(OPERATOR_CALLS);
        let viewer = operator(Rank::Viewer);
        let most = 10 * OPERATOR_CALLS.burst;
        let refusal = (0..most).find_map(|_| ration(&calls, Some(&viewer)).err()).expect("it is refused");
        assert_eq!(refusal.code(), Code::ResourceExhausted);
        assert!(refusal.message().contains("the viewer ada calls too often"), "{}", refusal.message());
        // The same person's other certificate, and those who have bounds of their own.
        ration(&calls, Some(&operator(Rank::Admin))).unwrap();
        let node = caller(Name::node("dev", "i-1"), Some(HOME), HOME);
        assert!((0..most).all(|_| ration(&calls, Some(&node)).is_ok() && ration(&calls, None).is_ok()));
    }

    #[test]
    fn an_instances_certificate_is_good_from_the_instances_address_alone() {
        let elsewhere = IpAddr::from([127, 1, 1, 21]);
        for (address, from, wanted) in [(Some(HOME), HOME, Code::Ok), (Some(HOME), elsewhere, Code::PermissionDenied), (None, HOME, Code::PermissionDenied)] {
            assert_eq!(code("/vp.v1.Agents/Session", &caller(Name::node("dev", "i-1"), address, from)), wanted);
        }
    }

    #[test]
    fn every_call_of_operators_is_in_the_table() {
        let proto = include_str!("../../../proto/proto/vp/v1/operators.proto");
        let calls = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        for call in calls {
            assert!(OPERATORS.iter().any(|(name, _)| *name == call), "{call}: say which rank may call it");
        }
    }

    /// An answer of which nothing comes.
    struct Silence;

    impl http_body::Body for Silence {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    fn request(path: &str, caller: &Caller) -> http::Request<()> {
        http::Request::builder().uri(path).extension(caller.clone()).body(()).unwrap()
    }

    #[tokio::test]
    async fn a_call_is_under_way_until_its_answer_is_dropped_and_one_that_is_refused_never_is() {
        let node = caller(Name::node("dev", "i-1"), Some(HOME), HOME);
        let mut behind = Admission.layer(tower::service_fn(|_: http::Request<()>| ready(Ok::<_, Infallible>(http::Response::new(Body::new(Silence))))));
        let quiet_since = node.quiet_since();
        let _refused = behind.call(request("/vp.v1.Peers/Send", &node)).await.unwrap();
        assert!(quiet_since.is_some() && node.quiet_since() == quiet_since);
        let answer = behind.call(request("/vp.v1.Agents/Session", &node)).await.unwrap();
        assert!(node.quiet_since().is_none());
        drop(answer);
        assert!(node.quiet_since().is_some());
    }

    #[tokio::test]
    async fn a_call_is_under_way_while_its_answer_is_waited_for_and_no_longer() {
        let node = caller(Name::node("dev", "i-1"), Some(HOME), HOME);
        let mut behind = Admission.layer(tower::service_fn(|_: http::Request<()>| pending::<Result<http::Response<Body>, Infallible>>()));
        let waiting = behind.call(request("/vp.v1.Agents/Session", &node));
        assert!(node.quiet_since().is_none());
        drop(waiting);
        assert!(node.quiet_since().is_some());
    }

    #[tokio::test]
    async fn a_call_whose_answer_has_nothing_to_send_is_over_at_once() {
        let node = caller(Name::node("dev", "i-1"), Some(HOME), HOME);
        let mut behind = Admission.layer(tower::service_fn(|_: http::Request<()>| ready(Ok::<_, Infallible>(http::Response::new(Body::empty())))));
        let answer = behind.call(request("/vp.v1.Agents/Session", &node)).await.unwrap();
        assert!(answer.into_body().is_end_stream() && node.quiet_since().is_some());
    }
}
