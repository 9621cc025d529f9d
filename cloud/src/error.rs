//! What a failed cloud call means to its caller: four cases, because a caller does one of four things.
//! Left out: retries. The SDK repeats what is safe to repeat before any of these is returned; a detach is not (`ec2`).

use std::error::Error;

use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::causes::causes;
#[cfg(feature = "autoscaling")]
use aws_sdk_autoscaling::error::SdkError;
#[cfg(all(feature = "ec2", not(feature = "autoscaling")))]
use aws_sdk_ec2::error::SdkError;

/// Why a cloud call did not give what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloudError {
    /// The cloud answered that it knows no such thing. Never proof that a machine has stopped.
    #[error("{operation}: not found: {reason}")]
    NotFound { operation: &'static str, code: String, reason: String },
    /// No answer, or the service's own trouble: the outcome is unknown. Look before asking again.
    #[error("{operation}: outcome unknown: {reason}")]
    Unreachable { operation: &'static str, reason: String },
    /// The credentials do not allow this.
    #[error("{operation}: denied: {reason}")]
    Denied { operation: &'static str, reason: String },
    /// The request is wrong, or the thing's present state forbids it (`code` is the service's own, e.g. `VolumeInUse`).
    #[error("{operation}: refused ({code}): {reason}")]
    Invalid { operation: &'static str, code: String, reason: String },
}

impl CloudError {
    /// True when the cloud answered that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The service's error code, when it refused the request or knows no such thing.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::NotFound { code, .. } | Self::Invalid { code, .. } => Some(code),
            _ => None,
        }
    }

    pub(crate) fn not_found(operation: &'static str, what: &str) -> Self {
        Self::NotFound { operation, code: String::new(), reason: format!("{what} is not known there") }
    }

    /// An answer without a field that the API promises.
    pub(crate) fn incomplete(operation: &'static str, field: &str) -> Self {
        Self::Unreachable { operation, reason: format!("the answer has no {field}") }
    }
}

/// Translates an SDK error; `operation` is the API's own name for the call.
pub(crate) fn translate<E, R>(operation: &'static str, error: SdkError<E, R>) -> CloudError
where
    E: ProvideErrorMetadata + Error + 'static,
    R: std::fmt::Debug + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let meta = answer.err().meta();
            let code = meta.code().unwrap_or("Unknown").to_owned();
            let reason = meta.message().unwrap_or("no message").to_owned();
            classify(operation, code, reason)
        }
        SdkError::ConstructionFailure(_) => CloudError::Invalid { operation, code: "Construction".to_owned(), reason: causes(&error) },
        other => CloudError::Unreachable { operation, reason: causes(&other) },
    }
}

fn classify(operation: &'static str, code: String, reason: String) -> CloudError {
    const DENIED: [&str; 9] = [
        "AccessDenied",
        "AccessDeniedException",
        "UnauthorizedOperation",
        "AuthFailure",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "RequestExpired",
        "OptInRequired",
    ];
    const TROUBLE: [&str; 9] = [
        "InternalError",
        "InternalFailure",
        "ServiceUnavailable",
        "Unavailable",
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "RequestTimeout",
        "Unknown",
    ];
    // Auto Scaling has no code of its own for a missing thing: ValidationError, told apart by its message.
    let missing = code.contains("NotFound") || (code == "ValidationError" && (reason.contains("not found") || reason.contains("does not exist")));
    if missing {
        CloudError::NotFound { operation, code, reason }
    } else if DENIED.contains(&code.as_str()) {
        CloudError::Denied { operation, reason }
    } else if TROUBLE.contains(&code.as_str()) {
        CloudError::Unreachable { operation, reason: format!("{code}: {reason}") }
    } else {
        CloudError::Invalid { operation, code, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, reason: &str) -> CloudError {
        classify("Call", code.to_owned(), reason.to_owned())
    }

    #[test]
    fn each_answer_falls_into_the_case_its_caller_acts_on() {
        assert!(of("InvalidInstanceID.NotFound", "i-1").is_not_found());
        assert!(of("ValidationError", "AutoScalingGroup name not found - dev").is_not_found());
        assert_eq!(of("ValidationError", "MinSize is larger than MaxSize").code(), Some("ValidationError"));
        assert_eq!(of("VolumeInUse", "vol-1 is attached").code(), Some("VolumeInUse"));
        assert!(matches!(of("UnauthorizedOperation", ""), CloudError::Denied { .. }));
        assert!(matches!(of("InternalError", ""), CloudError::Unreachable { .. }));
        assert!(matches!(of("Unknown", ""), CloudError::Unreachable { .. }));
    }
}
