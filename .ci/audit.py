"""Ask whether a locked version has a known fault. Ends with 1 if one has, and with 0 where nobody can be asked."""

import json
import subprocess
import sys

OPTIONS = (
    "--disable-pip --require-hashes --requirement requirements.lock --format json --progress-spinner off --timeout 10"
)
audit = subprocess.run(
    [sys.executable, "-m", "pip_audit", *OPTIONS.split()], capture_output=True, text=True, check=False
)
try:
    packages = json.loads(audit.stdout)["dependencies"]
except (ValueError, KeyError):
    print(f"known faults: nobody could be asked ({(audit.stderr.strip().splitlines() or ['no answer'])[-1][:120]})")
    sys.exit(0)
faults = [(package, fault) for package in packages for fault in package.get("vulns", ())]
for package, fault in faults:
    fixed = ", ".join(fault["fix_versions"]) or "no version yet"
    print(f"{package['name']} {package['version']}: {fault['id']}, mended in {fixed}")
print(f"known faults: {len(faults)} in {len(packages)} locked packages")
sys.exit(1 if faults else 0)
