//! Bringing a region up, step by step; every step looks first, so that running it again repairs what is missing and changes nothing else.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::aws::{self, Aws};
use super::down::{Step, strays};
use super::options::network_of;
use super::record::MARK;
use super::services::{self, CONTROL_API, KEEPER, LAMBDA, Ready, S3, Service};
use super::{AWS_REGION, Progress, Record, Region, RegionError, UpOptions, ZONES, checks, env, lock};
use crate::keeper::config::Config as KeeperConfig;
use crate::lambda::config as lambda;
use crate::process;

/// Time an invocation of a function may take: Lambda's own upper bound.
const FUNCTION_TIMEOUT_MS: u64 = 900_000;

/// The steps of another `up` take seconds, on a busy machine a minute.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn up(options: &UpOptions, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Region, RegionError> {
    let step = Step::begin(progress, "checks");
    checks::options(options)?;
    checks::machine(options)?;
    checks::spec(options).await?;
    let state = options.state.clone();
    if !Record::is_ours(&state) {
        return Err(RegionError::Foreign(state));
    }
    let Some(lock) = lock::take(&state, PATIENCE, progress).await? else {
        return Err(RegionError::Invalid(format!("another vpctl is at work on the region in {}: run it again when that one is done", state.display())));
    };
    let mut record = match known(options) {
        Ok(record) => record,
        Err(error) => {
            if lock.fresh {
                // Nothing was begun: it stays only if somebody has put something there.
                let _ = std::fs::remove_dir(&state);
            }
            return Err(error);
        }
    };
    step.done(progress, false);

    let step = Step::begin(progress, "state folder");
    folders(&state)?;
    let changed = lock.fresh;
    record.save(&state)?;
    write(&KeeperConfig::path(&state), &json(&keeper_config(&record, options)))?;
    write(&state.join("env"), env::file(&record, &state).as_bytes())?;
    step.done(progress, changed);

    let mut wanted = vec![control_api(&record, options, &state)];
    if options.lambda {
        write(&state.join("lambda.json"), &json(&lambda_config(&record, options, &state)))?;
        wanted.push(lambda_service(&record, options, &state));
    }
    wanted.push(s3(&record, options, &state));
    wanted.push(keeper(options, &state));
    for service in wanted {
        let step = Step::begin(progress, service.name);
        let lives = record.services.get(service.name).is_some_and(process::alive);
        if !lives {
            if service.name == CONTROL_API && record.made.contains_key("image") {
                return Err(RegionError::Forgotten { log: services::log(&state, CONTROL_API) });
            }
            // One that an interrupted run started and had no time to record would hold the port.
            for stray in strays(&state, services::marks(service.name)) {
                let fail = |source| RegionError::File { path: state.clone(), doing: "ending a service that was never recorded", source };
                process::kill(&stray).await.map_err(fail)?;
            }
            let started = services::start(&state, &service).await?;
            record.services.insert(service.name.to_owned(), started);
            record.save(&state)?;
        }
        step.done(progress, !lives);
    }

    let aws = Aws::connect(&record).await;
    let step = Step::begin(progress, "buckets");
    let changed = aws.buckets(&record).await?;
    step.done(progress, changed);
    let step = Step::begin(progress, "trust");
    let (trust, changed) = aws.trust(&record, &state).await?;
    step.done(progress, changed);
    let step = Step::begin(progress, "network");
    let changed = aws.network(&mut record).await?;
    step.done(progress, changed);
    let step = Step::begin(progress, "image");
    let changed = aws.image(&mut record).await? | image_files(&record, options, &state)?;
    record.save(&state)?;
    step.done(progress, changed);
    let step = Step::begin(progress, "launch templates");
    let changed = aws.templates(&mut record, options, &state, &trust).await?;
    record.save(&state)?;
    step.done(progress, changed);
    let step = Step::begin(progress, "groups");
    let changed = aws.groups(&mut record, options).await?;
    step.done(progress, changed);
    Ok(Region { record, state })
}

/// The region's record as it is, or that of a new one.
fn known(options: &UpOptions) -> Result<Record, RegionError> {
    match Record::load(&options.state) {
        Ok(record) => still_fits(&record, options).map(|()| record),
        Err(RegionError::Absent(_)) => Ok(new_record(options, checks::network(options)?)),
        Err(other) => Err(other),
    }
}

fn still_fits(record: &Record, options: &UpOptions) -> Result<(), RegionError> {
    let differs = |what: &str, is: &str, wanted: &str| {
        let state = options.state.display();
        Err(RegionError::Invalid(format!("the region in {state} has {what} {is}, not {wanted}: take it down first, or choose another state folder")))
    };
    if record.name != options.name {
        return differs("name", &record.name, &options.name);
    }
    match options.network {
        Some(number) if number != record.network => differs("network", &record.network.to_string(), &number.to_string()),
        _ => Ok(()),
    }
}

pub(super) fn new_record(options: &UpOptions, network: u8) -> Record {
    let own = network_of(network);
    let name = &options.name;
    let random = || uuid::Uuid::new_v4().simple().to_string();
    Record {
        name: name.clone(),
        network,
        lease_ms: options.lease_ms,
        aws_region: AWS_REGION.to_owned(),
        endpoint_url: format!("http://{own}:{}", checks::CONTROL_API_PORT),
        s3_endpoint_url: format!("http://{own}:{}", checks::S3_PORT),
        lambda_endpoint_url: format!("http://{own}:{}", checks::LAMBDA_PORT),
        access_key_id: format!("AKIA{}", random()[..16].to_uppercase()),
        secret_access_key: format!("{}{}", random(), &random()[..8]),
        buckets: ["uploads", "results", "cluster"].iter().map(|which| ((*which).to_owned(), format!("{name}-{which}"))).collect(),
        coordinators: if options.coordinators { aws::coordinators(network) } else { Vec::new() },
        made: BTreeMap::new(),
        nodes_group: format!("{name}-nodes"),
        coordinator_groups: if options.coordinators { (1..=ZONES.len()).map(|which| format!("{name}-coordinator-{which}")).collect() } else { Vec::new() },
        services: BTreeMap::new(),
        components: options.components.clone(),
        programs: options.programs.clone(),
    }
}

fn folders(state: &Path) -> Result<(), RegionError> {
    let mut private = std::fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    let fail = |path: PathBuf, source| RegionError::File { path, doing: "making a folder of the region", source };
    write(&state.join(MARK), b"A local region of vp keeps its state here; `vpctl dev down` removes all of it.\n")?;
    for folder in ["logs", "tmp", "s3", "identity", "images", "instances", "volumes", "lambda"] {
        let path = state.join(folder);
        private.create(&path).map_err(|source| fail(path, source))?;
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

/// Secrets are inside: for the owner only.
fn write(path: &Path, content: &[u8]) -> Result<(), RegionError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let fail = |source| RegionError::File { path: path.to_path_buf(), doing: "writing a file of the region", source };
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(fail)?;
    file.write_all(content).map_err(fail)
}

/// `boot`, `bin` and `roles` of the image, as links into the clone: a rebuilt program is what the next instance boots.
fn image_files(record: &Record, options: &UpOptions, state: &Path) -> Result<bool, RegionError> {
    let folder = state.join("images").join(record.made.get("image").map(String::as_str).unwrap_or_default());
    let fail = |path: &Path, source| RegionError::File { path: path.to_path_buf(), doing: "making the image", source };
    std::fs::create_dir_all(&folder).map_err(|source| fail(&folder, source))?;
    let mut changed = false;
    for (name, target) in
        [("boot", options.image.join("boot")), ("bin", options.programs.clone()), ("roles", options.roles.clone()), ("stream", options.stream.clone())]
    {
        let link = folder.join(name);
        let target = std::path::absolute(&target).map_err(|source| fail(&target, source))?;
        if std::fs::read_link(&link).ok().as_ref() != Some(&target) {
            // Replaced by rename: an instance that boots now sees the old or the new one.
            let fresh = folder.join(format!("{name}.new"));
            let _ = std::fs::remove_file(&fresh);
            symlink(&target, &fresh).and_then(|()| std::fs::rename(&fresh, &link)).map_err(|source| fail(&link, source))?;
            changed = true;
        }
    }
    Ok(changed)
}

fn keeper_config(record: &Record, options: &UpOptions) -> KeeperConfig {
    KeeperConfig {
        name: record.name.clone(),
        region: record.aws_region.clone(),
        endpoint_url: record.endpoint_url.clone(),
        components: options.components.clone(),
        role: "vp".to_owned(),
        access_key_id: record.access_key_id.clone(),
        secret_access_key: record.secret_access_key.clone(),
    }
}

fn lambda_config(record: &Record, options: &UpOptions, state: &Path) -> lambda::Config {
    let bucket = |which: &str| record.buckets.get(which).cloned().unwrap_or_default();
    let mut environment = base_environment(state);
    environment.extend(
        [
            ("VP_RESULTS_BUCKET", bucket("results")),
            ("VP_CLUSTER_BUCKET", bucket("cluster")),
            ("VP_UPLOADS_BUCKET", bucket("uploads")),
            ("VP_RECIPES", options.recipes.display().to_string()),
            ("AWS_REGION", record.aws_region.clone()),
            ("AWS_ENDPOINT_URL", record.endpoint_url.clone()),
            ("AWS_ENDPOINT_URL_S3", record.s3_endpoint_url.clone()),
            ("AWS_ACCESS_KEY_ID", record.access_key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", record.secret_access_key.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let function = |name: &str, program: &str, concurrency, bucket: String, prefix: Option<&str>, suffix: Option<&str>| lambda::Function {
        name: name.to_owned(),
        program: options.programs.join(program),
        environment: environment.clone(),
        timeout_ms: FUNCTION_TIMEOUT_MS,
        concurrency,
        bucket,
        prefix: prefix.map(str::to_owned),
        suffix: suffix.map(str::to_owned),
        dead_letter_queue: Some(format!("{}-{name}-dead-letters", record.name)),
    };
    lambda::Config {
        address: network_of(record.network),
        port: checks::LAMBDA_PORT,
        state_dir: state.join("lambda"),
        s3: lambda::S3 {
            endpoint_url: record.s3_endpoint_url.clone(),
            region: record.aws_region.clone(),
            access_key_id: record.access_key_id.clone(),
            secret_access_key: record.secret_access_key.clone(),
        },
        sqs_endpoint_url: Some(record.endpoint_url.clone()),
        functions: vec![
            function("ingest", "vp-ingest", 2, bucket("uploads"), None, None),
            function("publish", "vp-publish", 1, bucket("results"), Some("jobs/"), Some("/result.json")),
        ],
        sweep_every_ms: 10_000,
        retry_after_ms: vec![1_000, 2_000],
    }
}

/// What every service gets: a path, a home and a place for temporary files inside the region, and no way to metadata outside this machine.
fn base_environment(state: &Path) -> BTreeMap<String, String> {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), path),
        ("HOME".to_owned(), state.display().to_string()),
        ("TMPDIR".to_owned(), state.join("tmp").display().to_string()),
        ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
    ]);
    for name in ["RUST_LOG", "RUST_BACKTRACE", "LANG"] {
        environment.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
    }
    environment
}

fn text(path: impl Into<PathBuf>) -> String {
    path.into().to_string_lossy().into_owned()
}

fn control_api(record: &Record, options: &UpOptions, state: &Path) -> Service {
    let own = network_of(record.network);
    let mut environment = base_environment(state);
    environment.insert("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned());
    Service {
        name: CONTROL_API,
        program: options.components.join("moto/bin/python"),
        arguments: vec![
            text(options.launcher.join("launcher.py")),
            "--address".to_owned(),
            own.clone(),
            "--port".to_owned(),
            checks::CONTROL_API_PORT.to_string(),
            "--network".to_owned(),
            record.network.to_string(),
            "--state".to_owned(),
            text(state),
        ],
        environment,
        ready: Ready::Listens(format!("{own}:{}", checks::CONTROL_API_PORT)),
    }
}

fn lambda_service(record: &Record, options: &UpOptions, state: &Path) -> Service {
    Service {
        name: LAMBDA,
        program: options.programs.join("vp-localcloud"),
        arguments: vec!["lambda".to_owned(), "--config".to_owned(), text(state.join("lambda.json"))],
        environment: base_environment(state),
        ready: Ready::Listens(format!("{}:{}", network_of(record.network), checks::LAMBDA_PORT)),
    }
}

fn s3(record: &Record, options: &UpOptions, state: &Path) -> Service {
    let address = format!("{}:{}", network_of(record.network), checks::S3_PORT);
    let mut arguments = vec!["--port".to_owned(), address.clone(), "--region".to_owned(), record.aws_region.clone()];
    if options.lambda {
        arguments.extend(["--event-webhook-url".to_owned(), format!("{}/events", record.lambda_endpoint_url)]);
    }
    arguments.extend(["posix".to_owned(), text(state.join("s3"))]);
    let mut environment = base_environment(state);
    environment.insert("ROOT_ACCESS_KEY".to_owned(), record.access_key_id.clone());
    environment.insert("ROOT_SECRET_KEY".to_owned(), record.secret_access_key.clone());
    Service { name: S3, program: options.components.join("bin/versitygw"), arguments, environment, ready: Ready::Listens(address) }
}

fn keeper(options: &UpOptions, state: &Path) -> Service {
    Service {
        name: KEEPER,
        program: options.programs.join("vp-localcloud"),
        arguments: vec!["keeper".to_owned(), "--state".to_owned(), text(state)],
        environment: base_environment(state),
        ready: Ready::Holds(state.join("keeper.lock")),
    }
}
