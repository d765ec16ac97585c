# Source data: fetches tars and archives, draws the demo images, makes tars of COCO, takes stock of a folder of tars.

for job in jobs_of("fetch", "shards"):

    rule:
        name:
            job.name
        input:
            job.declared_inputs,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        localrule: job.is_local
        conda:
            "../envs/flowkit.yaml"
        threads: job.threads
        resources:
            mem_mb=job.memory_mb,
            runtime=job.runtime_minutes,
        params:
            *job.tracked,
            stage=job.spec.stage,
            spec=spec_of(job),
        message:
            job.name
        shell:
            COMMAND
