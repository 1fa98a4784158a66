//! Nodemesh in a cluster, as its users install it: an image, and one file to apply.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Cluster, test_name};
use crate::{bin_dir, eventually, exec::Output, flow::Flow};

/// How long an agent may take to be ready: it waits for its CA, which the Deployment `make-ca`
/// makes.
const READY_LIMIT: &str = "--timeout=180s";

/// How long the cluster may take to tell an agent something, and the agent to act on it, on a
/// machine that does other things too.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The image of pods with clients and servers: busybox, curl, mesh-probe.
pub const TEST_IMAGE: &str = "nodemesh.dev/test:dev";

/// The agents' image, of the programs that the tests test.
const AGENT_IMAGE: &str = "nodemesh.dev/mesh-agent:dev";

/// What images are made of, and what makes them.
const PROGRAMS: [&str; 3] = ["mesh-agent", "mesh-probe", "xtask"];

/// An installation. It ends with its cluster, or by [`Mesh::delete`].
#[derive(Debug)]
pub struct Mesh<'a> {
    cluster: &'a Cluster,
    namespace: String,
    manifest: String,
}

impl<'a> Mesh<'a> {
    /// A test's own cluster, of which the nodes have the images.
    pub fn cluster() -> Result<Cluster> {
        let cluster = Cluster::up(&test_name())?;
        Self::import_images(&cluster)?;
        Ok(cluster)
    }

    /// Gives the nodes the images of the agent and of the tests' pods.
    pub fn import_images(cluster: &Cluster) -> Result<()> {
        for image in [&["--profile", "dev"][..], &["--test-image"]] {
            cluster.import_image(&self::image(image)?)?;
        }
        Ok(())
    }

    /// Applies the manifest, and waits until the agents are ready. The images are there.
    pub fn install(cluster: &'a Cluster) -> Result<Self> {
        Self::installed(cluster, "nodemesh", manifest(&[])?)
    }

    /// The same by kustomize, which puts everything into another namespace.
    pub fn install_in(cluster: &'a Cluster, namespace: &str) -> Result<Self> {
        let dir = cluster.dir().join("kustomize");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("daemonset.yaml"), manifest(&[])?)?;
        let lines = format!("namespace: {namespace}\nresources: [daemonset.yaml]\n");
        fs::write(dir.join("kustomization.yaml"), lines)?;
        let manifest = cluster.kubectl(["kustomize", &dir.to_string_lossy()])?;
        Self::installed(cluster, namespace, manifest)
    }

    fn installed(cluster: &'a Cluster, namespace: &str, manifest: String) -> Result<Self> {
        let mesh = Self { cluster, namespace: namespace.to_owned(), manifest };
        mesh.apply()?;
        mesh.wait_ready()?;
        Ok(mesh)
    }

    /// Goes on with a manifest of other values, without applying it.
    pub fn choose(&mut self, options: &[&str]) -> Result<()> {
        self.manifest = manifest(options)?;
        Ok(())
    }

    /// `kubectl diff -f`: what an apply would change; nothing is an empty text.
    pub fn diff(&self) -> Result<String> {
        // It exits with 1 if there is something, and so does this with an error that has it.
        self.cluster.kubectl_with(&self.manifest, ["diff", "-f", "-"])
    }

    /// `kubectl apply -f`; again, it changes nothing.
    pub fn apply(&self) -> Result<String> {
        self.cluster.kubectl_with(&self.manifest, ["apply", "-f", "-"])
    }

    /// `kubectl delete -f`.
    pub fn delete(&self) -> Result<String> {
        self.cluster.kubectl_with(&self.manifest, ["delete", "--wait", "-f", "-"])
    }

    /// Waits until every agent is of the newest template and ready.
    pub fn wait_ready(&self) -> Result<()> {
        let rollout = ["-n", &self.namespace, "rollout", "status", "ds/mesh-agent", READY_LIMIT];
        self.cluster.kubectl(rollout).map(drop).with_context(|| self.told())
    }

    /// Waits until agents (`pod/NAME`) that have been replaced are gone. A rollout is done when the
    /// new agents are ready; the old ones then still drain.
    pub fn wait_gone(&self, agents: &[String]) -> Result<()> {
        let wait = ["-n", &self.namespace, "wait", "--for=delete", READY_LIMIT];
        self.cluster.kubectl(wait.into_iter().chain(agents.iter().map(String::as_str))).map(drop)
    }

    /// The pod of a node's agent.
    pub fn agent(&self, node: u8) -> Result<String> {
        let of_node = format!("spec.nodeName=node{node},status.phase=Running");
        let pods = self.cluster.kubectl([
            "-n",
            &self.namespace,
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=mesh-agent",
            "--field-selector",
            &of_node,
            "--sort-by=.metadata.creationTimestamp",
            "-o",
            "name",
        ])?;
        let newest = pods.lines().last().context("the node has no agent")?;
        Ok(newest.to_owned())
    }

    /// The address of its pod.
    pub fn agent_address(&self, node: u8) -> Result<IpAddr> {
        let agent = self.agent(node)?;
        let of = ["-n", &self.namespace, "get", &agent, "-o", "jsonpath={.status.podIP}"];
        Ok(self.cluster.kubectl(of)?.parse()?)
    }

    /// Runs a command of the agent's in its container, as a user would.
    pub fn exec(&self, node: u8, argv: &[&str]) -> Result<String> {
        let agent = self.agent(node)?;
        let exec = ["-n", &self.namespace, "exec", &agent, "--", "mesh-agent"];
        self.cluster.kubectl(exec.into_iter().chain(argv.iter().copied()))
    }

    /// `mesh-agent status -o json`.
    pub fn status(&self, node: u8) -> Result<Value> {
        Ok(serde_json::from_str(&self.exec(node, &["status", "-o", "json"])?)?)
    }

    /// The same, asked on the node itself: the API server may be away.
    pub fn status_on_node(&self, node: u8) -> Result<Value> {
        let agent = bin_dir().join("mesh-agent").into_os_string();
        let ask = [agent, "status".into(), "-o".into(), "json".into()];
        Ok(serde_json::from_str(&self.cluster.node(node).run(ask)?)?)
    }

    /// The state of a pod, `namespace/name`, as its node's agent has it.
    pub fn state_of(&self, node: u8, pod: &str) -> Result<Value> {
        Self::state_in(&self.status(node)?, pod)
    }

    /// The same, from a status that was read before.
    pub fn state_in(status: &Value, pod: &str) -> Result<Value> {
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let is = |found: &&Value| {
            format!(
                "{}/{}",
                found["namespace"].as_str().unwrap_or_default(),
                found["name"].as_str().unwrap_or_default()
            ) == pod
        };
        pods.iter().find(is).cloned().with_context(|| format!("no pod {pod} in {status:#}"))
    }

    /// Waits until pods (node, `namespace/name`) are in a state: `enrolled`, `not_enrolled`,
    /// `held`.
    pub fn wait_state(&self, pods: &[(u8, &str)], state: &str) -> Result<()> {
        eventually(PATIENCE, || {
            for (node, pod) in pods {
                let found = self.state_of(*node, pod)?;
                ensure!(found["state"] == state, "{pod} is not {state}: {found:#}");
            }
            Ok(())
        })
    }

    /// Waits until pods take nothing but mutual TLS.
    pub fn wait_strict(&self, pods: &[(u8, &str)]) -> Result<()> {
        eventually(PATIENCE, || {
            for (node, pod) in pods {
                let found = self.state_of(*node, pod)?;
                let is_strict = found["state"] == "enrolled" && found["mode"] == "strict";
                ensure!(is_strict, "{pod} is not strict: {found:#}");
            }
            Ok(())
        })
    }

    /// What is wrong, as the agent says it, asked on the node itself: code and message.
    pub fn problems_on_node(&self, node: u8) -> Result<Vec<(String, String)>> {
        let status = self.status_on_node(node)?;
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let text =
            |problem: &Value, key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        Ok(problems.iter().map(|it| (text(it, "code"), text(it, "message"))).collect())
    }

    /// Waits until the agent says that something is wrong, with these words.
    pub fn wait_problem(&self, node: u8, code: &str, words: &str) -> Result<()> {
        eventually(PATIENCE, || {
            let found = self.problems_on_node(node)?;
            let is_it = |(is, message): &(String, String)| is == code && message.contains(words);
            ensure!(found.iter().any(is_it), "node{node}, {code}: {found:#?}");
            Ok(())
        })
    }

    /// Waits until nothing is wrong any more.
    pub fn wait_no_problem(&self, node: u8) -> Result<()> {
        eventually(PATIENCE, || {
            let found = self.problems_on_node(node)?;
            ensure!(found.is_empty(), "node{node}: {found:#?}");
            Ok(())
        })
    }

    /// Kills a node's agent, and returns the process id that it had there.
    pub fn kill_agent(&self, node: u8) -> Result<Value> {
        // Not by its name: other processes of that program may run on the node.
        let killed = self.status_on_node(node)?["pid"].clone();
        self.cluster.node(node).run(["kill", "-KILL", &killed.to_string()])?;
        Ok(killed)
    }

    /// Cuts the connections of a node's agent to the API server; new ones may be made. Returns how
    /// many there were.
    pub fn sever(&self, node: u8) -> Result<usize> {
        let netns = format!("--net=/proc/{}/ns/net", self.status_on_node(node)?["pid"]);
        let kill = ["ss", "--no-header", "--tcp", "--kill", "dport", "=", ":443"];
        let killed = self.cluster.node(node).run(["nsenter", &netns].into_iter().chain(kill))?;
        Ok(killed.lines().count())
    }

    /// Whether one of the mesh's service accounts may do something to a resource of the core API
    /// group: in all namespaces or in a single one, to all objects or to a single one by its name.
    /// The API server lists the account's rights in each namespace, so that rights by a
    /// `RoleBinding` count, and those for certain names.
    pub fn account_may(&self, account: &str, verb: &str, resource: &str) -> Result<bool> {
        let names = "jsonpath={.items[*].metadata.name}";
        let namespaces = self.cluster.kubectl(["get", "namespaces", "-o", names])?;
        for namespace in namespaces.split_whitespace() {
            let rules = self.rules_of(account, namespace)?;
            ensure!(!rules.is_empty(), "{account} has no rights at all in {namespace}");
            if rules.iter().any(|rule| rule.allows(verb, resource)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What an account may do in a namespace, by the API server's answer.
    fn rules_of(&self, account: &str, namespace: &str) -> Result<Vec<Rule>> {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace}});
        let to = "--raw=/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
        let account = format!("--as=system:serviceaccount:{}:{account}", self.namespace);
        let ask = ["create", to, &account, "-f", "-"];
        let said: Value =
            serde_json::from_str(&self.cluster.kubectl_with(&review.to_string(), ask)?)?;
        let rules = said["status"]["resourceRules"].clone();
        serde_json::from_value(rules).with_context(|| format!("no rules in {said:#}"))
    }

    /// Makes connections until the newest that the node's agent knows is mutual TLS to that pod:
    /// the peers' announcements travel by themselves.
    pub fn wait_mtls(&self, node: u8, server: &str, dial: impl Fn() -> Result<()>) -> Result<()> {
        eventually(PATIENCE, || {
            dial()?;
            let flows = self.flows(node)?;
            let last = flows.last().context("no flow")?;
            ensure!(last.is_mtls() && last.server.pod.as_deref() == Some(server), "{last:#?}");
            Ok(())
        })
    }

    /// `mesh-agent flows -o json`.
    pub fn flows(&self, node: u8) -> Result<Vec<Flow>> {
        lines(&self.exec(node, &["flows", "-o", "json"])?)
    }

    /// The same, asked on the node itself.
    pub fn flows_on_node(&self, node: u8) -> Result<Vec<Flow>> {
        let agent = bin_dir().join("mesh-agent").into_os_string();
        lines(&self.cluster.node(node).run([agent, "flows".into(), "-o".into(), "json".into()])?)
    }

    /// What the agents and the API server said, for a failure.
    fn told(&self) -> String {
        let get = ["-n", &self.namespace, "get", "pods,events", "-o", "wide"];
        let logs = ["-n", &self.namespace, "logs", "-l", "app.kubernetes.io/part-of=nodemesh"];
        let all = [self.cluster.kubectl(get), self.cluster.kubectl(logs)];
        all.map(|told| told.unwrap_or_else(|error| error.to_string())).join("\n")
    }
}

/// A right, as the API server lists it. It may be for objects of certain names only, which does not
/// make it less of a right here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    verbs: Vec<String>,
    #[serde(default)]
    api_groups: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
}

impl Rule {
    fn allows(&self, verb: &str, resource: &str) -> bool {
        let has = |all: &[String], one: &str| all.iter().any(|it| it == one || it == "*");
        has(&self.verbs, verb) && has(&self.api_groups, "") && has(&self.resources, resource)
    }
}

/// What `mesh-agent manifest` prints: with the programs' own image, unless the options name
/// another.
fn manifest(options: &[&str]) -> Result<String> {
    let image = ["--image", AGENT_IMAGE];
    let image = if options.contains(&"--image") { &[][..] } else { &image[..] };
    let program = bin_dir().join("mesh-agent");
    let output = Command::new(&program).arg("manifest").args(image).args(options).output()?;
    Output::of(&[program.into(), "manifest".into()], &output).success()
}

fn lines<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// An image of the built programs. `xtask` makes it, unless it is newer than they are; returns the
/// archive.
fn image(arguments: &[&str]) -> Result<PathBuf> {
    let dir = bin_dir().join("images").join(arguments.join(""));
    fs::create_dir_all(&dir)?;
    let lock = Flock::lock(File::create(dir.join("lock"))?, FlockArg::LockExclusive);
    let _one_makes_it = lock.map_err(|(_, error)| error)?;
    let modified = |path: &Path| -> Result<SystemTime> { Ok(path.metadata()?.modified()?) };
    let archive = || -> Result<Option<PathBuf>> {
        let mut files = fs::read_dir(&dir)?.filter_map(|entry| Some(entry.ok()?.path()));
        Ok(files.find(|path| path.extension().is_some_and(|extension| extension == "tar")))
    };
    let programs = PROGRAMS.map(|program| bin_dir().join(program));
    if let Some(archive) = archive()? {
        let made = modified(&archive)?;
        let is_newer = |program: &PathBuf| Ok(modified(program)? > made);
        let changed: Vec<bool> = programs.iter().map(is_newer).collect::<Result<_>>()?;
        if !changed.contains(&true) {
            return Ok(archive);
        }
        // If making another image fails, the old one must not be taken for it.
        fs::remove_file(archive)?;
    }
    let mut xtask = Command::new(bin_dir().join("xtask"));
    xtask.arg("image").args(arguments).arg("--no-build").arg("--to").arg(&dir);
    let output = xtask.output().context("starting `xtask` (cargo build -p xtask)")?;
    Output::of(&["xtask".into(), "image".into()], &output).success()?;
    archive()?.with_context(|| format!("no image in {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_for_a_single_name_is_a_right() -> Result<()> {
        let rules = json!([
            {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["nodemesh-ca"]},
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]},
            {"verbs": ["create"], "apiGroups": ["", "events.k8s.io"], "resources": ["events"]},
        ]);
        let rules: Vec<Rule> = serde_json::from_value(rules)?;
        let may = |verb: &str, resource: &str| rules.iter().any(|it| it.allows(verb, resource));
        ensure!(may("get", "secrets") && may("create", "events"));
        ensure!(!may("list", "secrets") && !may("create", "pods"), "of another API group");
        Ok(())
    }
}
