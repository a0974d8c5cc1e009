"""draft"""
import argparse, json, os, select, subprocess, sys, threading, time, traceback, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SECONDS = 120

def work():
    warnings.filterwarnings("ignore")
    import torch
    torch.set_num_threads(1)
    import transformers
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        t = line.strip()
        started = time.perf_counter()
        rec = examine(t)
        rec["type"] = t
        rec["seconds"] = round(time.perf_counter() - started, 1)
        print("@@" + json.dumps(rec), flush=True)

def examine(t):
    import torch
    from tests.models import architectures as A
    from tests.reference import eager as E
    stage = "not built"
    try:
        model = A.tiny(t); twin = A.tiny(t, "eager")
        twin.load_state_dict(model.state_dict())
        stage = "not run"
        probes = A.probes()
        with torch.no_grad():
            a = model(input_ids=probes[0], use_cache=False).logits
            b = twin(input_ids=probes[0], use_cache=False).logits
        drift = float((a-b).abs().max()/a.abs().max())
        stage = "crashed"
        rec = E.compare(model, twin, probes)
        rec["drift"] = drift
        tc = model.config.get_text_config()
        rec["declared"] = getattr(tc, "num_hidden_layers", None)
        return rec
    except Exception as e:
        tb = traceback.extract_tb(e.__traceback__)[-1]
        return {"status": stage, "reason": f"{type(e).__name__}: {str(e)[:400]} @{tb.filename.split('transformers/')[-1]}:{tb.lineno}"}

class Worker:
    def __init__(self): self.p = None
    def start(self):
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.p = subprocess.Popen([sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env, bufsize=1)
    def __call__(self, t):
        if self.p is None or self.p.poll() is not None: self.start()
        self.p.stdin.write(t + "\n"); self.p.stdin.flush()
        end = time.time() + SECONDS
        while time.time() < end:
            if not select.select([self.p.stdout], [], [], max(0, end - time.time()))[0]: break
            line = self.p.stdout.readline()
            if not line:
                code = self.p.wait(); self.p = None
                return {"type": t, "status": "crashed", "reason": f"the process died with {code}"}
            if line.startswith("@@"): return json.loads(line[2:])
        self.p.kill(); self.p.wait(); self.p = None
        return {"type": t, "status": "crashed", "reason": f"took over {SECONDS} s"}

def main():
    ap = argparse.ArgumentParser(); ap.add_argument("--only", nargs="*"); ap.add_argument("--worker", action="store_true"); ap.add_argument("--json")
    a = ap.parse_args()
    if a.worker: return work()
    from tests.models import architectures as A
    local = threading.local(); workers = []
    def one(t):
        if not hasattr(local, "w"): local.w = Worker(); workers.append(local.w)
        r = local.w(t); print(r["type"], r["status"], r.get("way", ""), r.get("measured"), r.get("patterns"), r.get("worst"), r.get("reason", "")[:300], flush=True); return r
    started = time.time()
    with ThreadPoolExecutor(2) as pool: recs = list(pool.map(one, a.only or A.types()))
    for w in workers:
        if w.p: w.p.stdin.close(); w.p.wait()
    print(time.time() - started)
    if a.json: Path(a.json).write_text(json.dumps(recs, indent=1))
main()
