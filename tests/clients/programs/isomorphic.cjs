// isomorphic-git as a client: `clone URL DIR DEPTH`, `fetch DIR`, `push DIR REFSPEC`. A depth of 0 is the whole history.
// Each line of stdin is such an action, its words separated by tabs. After what it prints comes a line with a NUL and the
// exit code.
const fs = require('fs')
const git = require('isomorphic-git')
const http = require('isomorphic-git/http/node')
const readline = require('readline')

const onMessage = (text) => process.stderr.write(text)

async function main(action, ...args) {
  if (action === 'clone') {
    const [url, dir, depth] = args
    await git.clone({ fs, http, dir, url, onMessage, ...(depth === '0' ? {} : { depth: Number(depth) }) })
  } else if (action === 'fetch') {
    await git.fetch({ fs, http, dir: args[0], remote: 'origin', tags: true, prune: true, onMessage })
  } else {
    const [dir, refspec] = args
    const [source, remoteRef] = refspec.replace(/^\+/, '').split(':')
    const branch = await git.currentBranch({ fs, dir, fullname: true })
    await git.push({
      fs, http, dir, onMessage, remoteRef,
      remote: 'origin',
      ref: source === 'HEAD' || source === '' ? branch : source,
      force: refspec.startsWith('+'),
      delete: source === '',
    })
  }
}

async function all() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    let code = 0
    try {
      await main(...line.split('\t'))
    } catch (error) {
      // What a program prints that catches its errors.
      console.error(`${error.name}: ${error.message}`)
      code = 1
    }
    process.stdout.write(`\0${code}\n`)
  }
}

all()
