import java.io.BufferedReader;
import java.io.File;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import org.eclipse.jgit.api.CloneCommand;
import org.eclipse.jgit.api.Git;
import org.eclipse.jgit.transport.OperationResult;
import org.eclipse.jgit.transport.PushResult;
import org.eclipse.jgit.transport.RefSpec;
import org.eclipse.jgit.transport.RemoteRefUpdate;

/**
 * JGit as a client: `clone URL DIR DEPTH`, `fetch DIR`, `push DIR REFSPEC`. A depth of 0 is the whole history.
 *
 * Each line of stdin is such an action, its words separated by tabs. After what it prints comes a line with a NUL and
 * the exit code.
 */
public final class JgitClient {
    private static boolean refused;

    public static void main(String[] args) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            refused = false;
            try {
                run(line.split("\t"));
            } catch (Exception error) {
                for (Throwable each = error; each != null; each = each.getCause()) {
                    System.err.println(each.getClass().getSimpleName() + ": " + each.getMessage());
                }
                refused = true;
            }
            System.out.println("\0" + (refused ? 1 : 0));
        }
        System.exit(0);
    }

    private static void run(String[] args) throws Exception {
        if (args[0].equals("clone")) {
            CloneCommand clone = Git.cloneRepository().setURI(args[1]).setDirectory(new File(args[2]));
            if (!args[3].equals("0")) {
                clone.setDepth(Integer.parseInt(args[3]));
            }
            clone.call().close();
            return;
        }
        try (Git git = Git.open(new File(args[1]))) {
            if (args[0].equals("fetch")) {
                tell(git.fetch().setRemote("origin").call());
                return;
            }
            for (PushResult result : git.push().setRemote("origin").setRefSpecs(new RefSpec(args[2])).call()) {
                tell(result);
                for (RemoteRefUpdate update : result.getRemoteUpdates()) {
                    refused |= update.getStatus() != RemoteRefUpdate.Status.OK
                            && update.getStatus() != RemoteRefUpdate.Status.UP_TO_DATE;
                    System.err.println(update.getRemoteName() + ": " + update.getStatus() + " " + update.getMessage());
                }
            }
        }
    }

    private static void tell(OperationResult result) {
        new PrintWriter(System.err, true).println(result.getMessages());
    }
}
